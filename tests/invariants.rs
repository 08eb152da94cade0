//! The invariants I1 and I2.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]
mod gate;
#[test]
fn x() {}

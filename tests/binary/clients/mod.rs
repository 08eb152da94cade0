//! Programs and libraries that real machines resolve by: what they make of the answers, and how often they ask.
//!
//! How often is what a refusal costs: a resolver that meets silence or a code that it does not understand asks again,
//! seconds later. So the queries of each lookup are counted in the log, and none may come twice.
//!
//! Not here: systemd-resolved, which needs a running systemd and its bus; the resolvers of Go and Java, for their
//! toolchains are no part of this repository's needs.

mod programs;
mod resolvers;

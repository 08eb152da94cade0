//! Programs and libraries that real machines resolve by: what they make of the answers, and how often they ask.
//!
//! How often is what a refusal costs: a resolver that meets silence or a code that it does not understand asks again,
//! seconds later. So the queries of each lookup are counted in the log, and none may come twice.

mod programs;
mod resolvers;
mod runtimes;

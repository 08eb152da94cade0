//! What operators change while the node runs: rules that they make over the admin socket, and clients that they place in
//! segments. All of it is in one file of the state directory, so that a restart keeps it and no deploy of policy files
//! undoes it; all of it is laid over the policy of the files ([`Policy::with`](crate::policy::Policy::with)). What is told to
//! the peers of the node, and what they tell, is [`News`].

mod apply;
mod book;
mod change;
mod feed;
mod news;
mod tell;
mod tend;

pub(super) use apply::Desk;
pub(super) use book::{Book, Contents};
pub(super) use change::Author;
pub(super) use feed::Feed;
pub(super) use news::{Late, News};

//! What is made of one turn at a connection.

/// How many octets of replies are made ready at a time: a client that does not read them makes nobody hold more, but
/// for the reply that passes it.
const READY: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Round<J> {
    replies: Vec<u8>,
    jobs: Vec<J>,
    room: usize,
    unrecorded: bool,
}

impl<J> Round<J> {
    /// An empty one; so many queries may wait.
    pub(in crate::serve) const fn new(room: usize) -> Self {
        Self { replies: Vec::new(), jobs: Vec::new(), room, unrecorded: false }
    }

    /// So many queries may wait from here on.
    pub(super) const fn set_room(&mut self, room: usize) {
        self.room = room;
    }

    /// Whether nothing more is to be taken, `ready` octets of replies being made.
    #[must_use]
    pub const fn is_full(&self, ready: usize) -> bool {
        self.jobs.len() >= self.room || ready >= READY
    }

    /// One that has to wait.
    pub fn wait(&mut self, job: J) {
        self.jobs.push(job);
    }

    /// One that is answered; a reply that no length can say is left out.
    pub fn reply(&mut self, reply: &[u8]) {
        if let Ok(length) = u16::try_from(reply.len()) {
            self.replies.extend_from_slice(&length.to_be_bytes());
            self.replies.extend_from_slice(reply);
        }
    }

    /// Records could not be written: their clients hear nothing.
    pub const fn fail(&mut self) {
        self.unrecorded = true;
    }

    /// What has to wait.
    pub(super) fn jobs(&mut self) -> impl Iterator<Item = J> {
        self.jobs.drain(..)
    }

    /// The replies, each behind its length.
    pub(super) fn replies(&self) -> &[u8] {
        &self.replies
    }

    /// Forgets the replies, and all but `keep` octets of the room they took.
    pub(super) fn clear(&mut self, keep: usize) {
        self.replies.clear();
        self.replies.shrink_to(keep);
    }

    /// The one that has to wait, where one was asked.
    pub(in crate::serve) fn take_job(&mut self) -> Option<J> {
        self.jobs.pop()
    }

    /// The reply, where one was asked.
    pub(in crate::serve) fn take_reply(&mut self) -> Option<Vec<u8>> {
        let reply = self.replies.split_off(self.replies.len().min(2));
        (!reply.is_empty()).then_some(reply)
    }

    /// Whether there is no reply since there is no record.
    pub(in crate::serve) const fn is_unrecorded(&self) -> bool {
        self.unrecorded
    }
}

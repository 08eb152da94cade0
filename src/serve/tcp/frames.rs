//! Messages out of a byte stream: two bytes of length, then the message (RFC 1035 §4.2.2).

use super::Ending;

/// What was read of a stream and not taken yet: at most one message of the largest size.
#[derive(Debug)]
pub struct Frames {
    buffer: Vec<u8>,
    /// How much of the buffer was taken.
    taken: usize,
    largest: usize,
}

impl Frames {
    pub(super) fn new(largest: usize) -> Self {
        Self { buffer: Vec::with_capacity(largest + 2), taken: 0, largest }
    }

    /// One message that came whole; one that no length can say is none.
    pub(in crate::serve) fn of(message: &[u8]) -> Self {
        let length = u16::try_from(message.len()).unwrap_or(0);
        Self { buffer: [&length.to_be_bytes(), message].concat(), taken: 0, largest: message.len() }
    }

    /// Where to read to. There is room whenever there is nothing to take, so the buffer never grows.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        &mut self.buffer
    }

    /// Whether a message is complete, however many segments it came in (RFC 7766 §8).
    ///
    /// # Errors
    /// A length of 0 or above the limit: what follows cannot be trusted.
    pub(super) fn ready(&self) -> Result<bool, Ending> {
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<2>() else { return Ok(false) };
        match usize::from(u16::from_be_bytes(*length)) {
            0 => Err(Ending::Empty),
            length if length > self.largest => Err(Ending::Oversize),
            length => Ok(rest.len() >= length),
        }
    }

    /// The next message, once it is complete.
    pub fn take(&mut self) -> Option<&[u8]> {
        if !self.ready().unwrap_or(false) {
            return None;
        }
        let (length, rest) = self.buffer.get(self.taken..)?.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        self.taken += length + 2;
        rest.get(..length)
    }

    /// Whether a message has begun that is not complete.
    pub(super) const fn begun(&self) -> bool {
        self.buffer.len() > self.taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `stream` in pieces, as reads into the buffer's room would, and takes whatever is complete.
    fn through(stream: &[u8], pieces: &[usize], largest: usize) -> Result<Vec<Vec<u8>>, Ending> {
        let mut frames = Frames::new(largest);
        let room = frames.buffer().capacity();
        let (mut rest, mut taken, mut pieces) = (stream, Vec::new(), pieces.iter().cycle());
        while !rest.is_empty() {
            let free = room - frames.buffer().len();
            assert!(free > 0, "no room, and nothing to take");
            let piece = (*pieces.next().unwrap()).min(free).min(rest.len());
            frames.buffer().extend_from_slice(&rest[..piece]);
            rest = &rest[piece..];
            while frames.ready()? {
                taken.push(frames.take().unwrap().to_vec());
            }
            assert_eq!(frames.take(), None);
        }
        assert_eq!(frames.buffer().capacity(), room, "the buffer grew");
        assert!(!frames.begun(), "bytes left over");
        Ok(taken)
    }

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        messages.iter().flat_map(|m| [&u16::try_from(m.len()).unwrap().to_be_bytes()[..], m].concat()).collect()
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_messages(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=40), 0..20),
            pieces in prop::collection::vec(1_usize..60, 1..10),
        ) {
            prop_assert_eq!(through(&framed(&messages), &pieces, 40).unwrap(), messages);
        }
    }

    #[test]
    fn a_length_of_zero_or_too_much_ends_it() {
        assert_eq!(through(&[0, 0], &[1], 40), Err(Ending::Empty));
        assert_eq!(through(&[0, 41], &[1], 40), Err(Ending::Oversize));
        assert_eq!(through(&[0xff, 0xff, 1], &[3], 4096), Err(Ending::Oversize));
    }
}

//! What a reply says of the records of its request.

use std::time::Duration;

use super::client::Reply;
use super::settings::Settings;

/// The longest text of a server that is told on.
const TOLD: usize = 200;
/// How long a server is left alone that does not let us in: an operator has to do something about it.
pub(super) const SHUT_OUT: Duration = Duration::from_secs(30);

/// What it says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// All were taken; where the server acknowledges later, by which number.
    Taken(Option<u64>),
    /// All were taken but for these, by their position in the request.
    Each {
        /// To be offered again.
        again: Vec<usize>,
        /// Not taken, and why: because of the record, where others were taken.
        suspects: Vec<(usize, String)>,
        /// Why the first was not taken.
        why: Option<String>,
    },
    /// One will never be taken, and because of it the others may not have been.
    Without {
        /// Its position in the request.
        at: usize,
        /// Why.
        why: String,
    },
    /// None were taken; fewer may be.
    Smaller {
        /// Why.
        why: String,
        /// Because of its size.
        large: bool,
    },
    /// None were taken, and it is not because of them.
    Later {
        /// Why, with the remedy where there is one.
        why: String,
        /// How long the server wants to be left alone.
        wait: Option<Duration>,
    },
}

impl Said {
    pub(super) const fn later(why: String) -> Self {
        Self::Later { why, wait: None }
    }
}

/// What any server means by a status; those of an API's own were looked at before.
pub(super) fn by_status(settings: &Settings, reply: &Reply, words: &str) -> Said {
    let Reply { status, retry_after, location, .. } = reply;
    let words = if words.is_empty() { String::new() } else { format!(": {}", told(words)) };
    let remedy = match status {
        300..=399 => {
            let to = location.as_deref().map_or_else(String::new, |to| format!(" to {}", told(to)));
            return Said::later(format!(
                "redirects{to} ({status}), which is not followed; write where it leads in `url`"
            ));
        }
        401 | 403 if settings.token_file.is_some() => "; look at `token_file` and at what it may do there",
        401 | 403 => "; name a `token_file`",
        404 | 405 => "; look at `url`",
        413 => return Said::Smaller { why: format!("a request is too large for it (413){words}"), large: true },
        _ => "",
    };
    let wait = if matches!(status, 401 | 403) { Some(SHUT_OUT) } else { *retry_after };
    Said::Later { why: format!("answers {status}{words}{remedy}"), wait }
}

/// Text that somebody else chose, within bounds and without control characters.
pub(super) fn told(text: &str) -> String {
    let mut told = text.trim().escape_debug().to_string();
    if told.len() > TOLD {
        told.truncate(told.floor_char_boundary(TOLD));
        told.push('…');
    }
    told
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn text_of_a_server_is_told_within_bounds() {
        assert_eq!(told(" busy\n"), "busy");
        assert_eq!(told("\u{1b}[2J"), "\\u{1b}[2J");
        assert_eq!(told(&"\u{e4}".repeat(500)).chars().count(), 101);
    }
}

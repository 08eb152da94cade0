//! What two nodes say to each other: frames of a length, 32 bits in network order, and so many octets of JSON.
//!
//! Each node connects to each of its peers. Who connected speaks: what it tells is done and answered, one telling after the
//! other. So each direction stands or falls on its own, and is seen to.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::app::changes::News;
use crate::firewall::remote::message::{HEAD, read_frame, write_frame};

/// The version of what is said. Nodes of different ones do not talk.
pub(super) const VERSION: u32 = 1;

/// What is said by the node that connected.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Words {
    /// First. Every version has it.
    Hello { version: u32 },
    /// It lives.
    Beat(Standing),
    /// What was changed there.
    Tell { number: u64, news: News },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// To the hello.
    Welcome { version: u32 },
    /// To a beat.
    Beat(Standing),
    /// To what was told.
    Done { number: u64, became: Result<Value, String> },
    /// Why the connection ends.
    Refused(String),
}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    /// As in its records.
    pub(super) node: String,
    /// Of the program.
    pub(super) version: String,
    /// Of its policy.
    pub(super) revision: String,
}

/// Writes one frame.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), said: &impl Serialize) -> io::Result<()> {
    let mut frame = HEAD.to_vec();
    serde_json::to_writer(&mut frame, said)?;
    write_frame(to, frame).await
}

/// Reads one frame; not to be cancelled half way.
pub(super) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let frame = read_frame(from).await?;
    serde_json::from_slice(&frame)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("a frame that says nothing: {error}")))
}

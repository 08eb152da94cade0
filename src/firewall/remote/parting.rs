//! The end of a connection after the last word: who is refused hears why.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// So many octets are read of one that is not heard any more.
const UNHEARD: u64 = 1 << 20;

/// Ends a connection and hears the other side out: one that ends with something unread is reset, and that takes what was said
/// last with it. It takes as long as the other side does; the caller bounds it.
pub async fn part_with(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let parted = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(UNHEARD), &mut tokio::io::sink()).await
    };
    // Nobody may be there any more.
    drop(parted.await);
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn the_last_word_is_heard_by_who_did_not_stop_talking() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"why").await.unwrap();
        let parting = tokio::spawn(part_with(server));
        for _ in 0..10 {
            client.write_all(&[0; 10_000]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "why");
        drop(client);
        parting.await.unwrap();
    }
}

//! `gemba ping`: round trips on demand, over a stream of their own (libp2p ping 1.0.0: 32 bytes, echoed).

use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p_identity::PeerId;
use libp2p_swarm::{Stream, StreamProtocol};
use tokio::time::Instant;

use crate::error::{Code, Fail};

/// As Kubo and every libp2p node serves it.
pub(crate) const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");
/// A pong that has not come by then will not come.
const DEADLINE: Duration = Duration::from_secs(5);
const PAYLOAD: usize = 32;

/// Opens its stream with the first ping and keeps it.
pub struct Pinger {
    control: libp2p_stream::Control,
    peer: PeerId,
    stream: Option<Stream>,
}

impl Pinger {
    /// For a connected peer.
    #[must_use]
    pub fn new(control: libp2p_stream::Control, peer: PeerId) -> Self {
        Self {
            control,
            peer,
            stream: None,
        }
    }

    /// One round trip.
    ///
    /// # Errors
    /// The peer does not answer in 5 s, or the connection is gone.
    pub async fn ping(&mut self) -> Result<Duration, Fail> {
        match tokio::time::timeout(DEADLINE, self.round_trip()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.stream = None;
                Err(Fail::new(Code::Timeout, format!("{} did not answer in {} s", self.peer, DEADLINE.as_secs()))
                    .hint("the connection is there but nothing comes back: look at the device or the line"))
            }
        }
    }

    async fn round_trip(&mut self) -> Result<Duration, Fail> {
        let broken = |e: &dyn std::fmt::Display| {
            Fail::new(
                Code::Failure,
                format!("the connection with {} broke: {e}", self.peer),
            )
        };
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self
                .control
                .open_stream(self.peer, PROTOCOL)
                .await
                .map_err(|e| broken(&e))?,
        };
        let mut sent = [0; PAYLOAD];
        getrandom::fill(&mut sent).map_err(|e| broken(&e))?;
        let mut got = [0; PAYLOAD];
        let start = Instant::now();
        stream.write_all(&sent).await.map_err(|e| broken(&e))?;
        stream.flush().await.map_err(|e| broken(&e))?;
        stream.read_exact(&mut got).await.map_err(|e| broken(&e))?;
        let rtt = start.elapsed();
        if sent != got {
            return Err(Fail::new(
                Code::Integrity,
                format!(
                    "{} answered a ping with other bytes than it was sent",
                    self.peer
                ),
            ));
        }
        self.stream = Some(stream);
        Ok(rtt)
    }
}

//! A member that speaks each layer by hand, to say in the next one what it likes.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncWrite};
use gemba_pnet::{PskStream, Side, SwarmKey};
use libp2p_core::upgrade::OutboundConnectionUpgrade;
use libp2p_identity::Keypair;
use multistream_select::{Negotiated, Version, dialer_select_proto};

type Secured<S> = libp2p_noise::Output<Negotiated<PskStream<S>>>;

/// Through key, Noise and the choice of yamux: what is written next are frames.
pub async fn up_to_yamux<S>(
    socket: S,
    key: &SwarmKey,
    keypair: &Keypair,
) -> io::Result<Negotiated<Secured<S>>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let patience = Duration::from_secs(20);
    let stream = PskStream::handshake(socket, key, Side::Dialer, patience).await?;
    let (_, stream) = dialer_select_proto(stream, ["/noise"], Version::V1)
        .await
        .map_err(io::Error::other)?;
    let noise = libp2p_noise::Config::new(keypair).map_err(io::Error::other)?;
    let upgraded = noise.upgrade_outbound(stream, "/noise").await;
    let (_, secured) = upgraded.map_err(io::Error::other)?;
    let (_, stream) = dialer_select_proto(secured, ["/yamux/1.0.0"], Version::V1)
        .await
        .map_err(io::Error::other)?;
    Ok(stream)
}

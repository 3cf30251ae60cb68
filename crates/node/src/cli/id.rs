//! `gemba id`

use super::Context;
use crate::api::types::Id;
use crate::error::Fail;

/// The agent string that peers see.
pub const AGENT: &str = concat!("gemba/", env!("CARGO_PKG_VERSION"));

/// Shows who this node is: from the daemon with its addresses, else from the key file without any.
///
/// # Errors
/// The key cannot be read.
pub fn run(context: &Context) -> Result<(), Fail> {
    let id = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| client.get_json("/v1/id").await)?,
        None => offline(context)?,
    };
    context.out.result(&id, |id| {
        let mut text = format!("peer id   {}\nagent     {}", id.id, id.agent);
        for address in &id.addresses {
            text.push_str(&format!("\naddress   {address}"));
        }
        if id.addresses.is_empty() {
            text.push_str("\naddress   none: no daemon answers on this repository");
        }
        text
    })
}

fn offline(context: &Context) -> Result<Id, Fail> {
    context.layout.check()?;
    let id = context
        .layout
        .read_identity()?
        .public()
        .to_peer_id()
        .to_string();
    Ok(Id {
        id,
        addresses: Vec::new(),
        agent: AGENT.to_owned(),
        protocols: Vec::new(),
    })
}

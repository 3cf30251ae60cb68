//! As much of an MQTT 5 broker as a bridge meets: one reader, whose session outlives its connections, clients that publish, QoS 1, and user properties. The
//! reader is sent what the bridge published itself, too: whoever makes a loop is found.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// Whose session outlives its connections.
const READER: &str = "gemba-bridge";
/// What it may have open; less than it says itself.
const OPEN: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) user: Vec<(String, String)>,
}

#[derive(Default)]
pub(crate) struct State {
    waiting: VecDeque<Message>,
    /// Sent and not acknowledged.
    open: VecDeque<(u16, Message)>,
    has_session: bool,
    link: Option<TcpStream>,
    /// Messages that were acknowledged by the client.
    pub(crate) acked: usize,
    /// Acknowledgements of what was not open.
    pub(crate) odd: usize,
    /// Messages that were sent again.
    pub(crate) again: usize,
    /// What the client published.
    pub(crate) published: Vec<Message>,
}

#[derive(Clone)]
pub(crate) struct Broker {
    state: Arc<Mutex<State>>,
    pub(crate) address: SocketAddr,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let broker = Self {
            state: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let serving = broker.clone();
        std::thread::spawn(move || {
            for link in listener.incoming().flatten() {
                let broker = serving.clone();
                // Whatever ends a connection ends this one alone.
                std::thread::spawn(move || broker.serve(link));
            }
        });
        broker
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A device publishes.
    pub(crate) fn publish(&self, topic: &str, payload: &str, user: &[(&str, &str)]) {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        self.state().take(Message {
            topic: topic.to_owned(),
            payload: payload.to_owned(),
            user: user.iter().map(pair).collect(),
        });
    }

    /// Whether the client has acknowledged everything.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state();
        state.has_session && state.waiting.is_empty() && state.open.is_empty()
    }

    /// The line of the reader breaks.
    pub(crate) fn cut(&self) {
        if let Some(link) = self.state().link.take() {
            let _ = link.shutdown(Shutdown::Both);
        }
    }

    /// Whether the reader is connected, as far as is known here.
    #[cfg(target_os = "linux")]
    pub(crate) fn is_linked(&self) -> bool {
        self.state().link.is_some()
    }

    fn serve(&self, mut link: TcpStream) -> Option<()> {
        let mut is_reader = false;
        loop {
            let Some((kind, body)) = packet(&mut link) else {
                if is_reader {
                    self.state().link = None;
                }
                return None;
            };
            let mut state = self.state();
            match kind >> 4 {
                // CONNECT of somebody who keeps no session, and is sent nothing.
                1 if client_of(&body)? != READER => link.write_all(&[0x20, 3, 0, 0, 0]).ok()?,
                // CONNECT: what was open is sent again.
                1 => {
                    let has_session = state.has_session;
                    link.write_all(&[0x20, 3, u8::from(has_session), 0, 0])
                        .ok()?;
                    state.link = link.try_clone().ok();
                    is_reader = true;
                    state.again += state.open.len();
                    for (id, message) in state.open.clone() {
                        link.write_all(&publish(id, &message, true)).ok()?;
                    }
                    state.pump();
                }
                // SUBSCRIBE: to all, as far as this broker is concerned.
                8 => {
                    state.has_session = true;
                    link.write_all(&[0x90, 4, body[0], body[1], 0, 1]).ok()?;
                    state.pump();
                }
                3 => {
                    let (id, message) = read_publish(&body)?;
                    state.published.push(message.clone());
                    let [high, low] = id.to_be_bytes();
                    link.write_all(&[0x40, 2, high, low]).ok()?;
                    state.take(message);
                }
                4 => {
                    let id = u16::from_be_bytes([body[0], body[1]]);
                    let before = state.open.len();
                    state.open.retain(|(open, _)| *open != id);
                    let acked = before - state.open.len();
                    state.acked += acked;
                    state.odd += usize::from(acked == 0);
                    state.pump();
                }
                12 => link.write_all(&[0xd0, 0]).ok()?,
                _ => return None,
            }
        }
    }
}

impl State {
    fn take(&mut self, message: Message) {
        self.waiting.push_back(message);
        self.pump();
    }

    /// The lowest that is free, as some brokers take it: whoever acknowledges twice acknowledges another message.
    fn free_id(&self) -> u16 {
        let is_free = |id: &u16| self.open.iter().all(|(open, _)| open != id);
        (1..=u16::MAX).find(is_free).unwrap()
    }

    /// Sends what may be open. What does not get there is sent again to the next connection.
    fn pump(&mut self) {
        while self.has_session && self.open.len() < OPEN {
            let Some(message) = self.waiting.pop_front() else {
                return;
            };
            let id = self.free_id();
            if let Some(link) = &mut self.link {
                let _ = link.write_all(&publish(id, &message, false));
            }
            self.open.push_back((id, message));
        }
    }
}

/// The first byte and the body of a packet.
fn packet(link: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    link.read_exact(&mut byte).ok()?;
    let (kind, mut len, mut shift) = (byte[0], 0, 0);
    loop {
        link.read_exact(&mut byte).ok()?;
        len |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] < 0x80 {
            break;
        }
    }
    let mut body = vec![0; len];
    link.read_exact(&mut body).ok()?;
    Some((kind, body))
}

/// Who connects: behind the protocol's name, its version, flags, the time of silence and the properties.
fn client_of(body: &[u8]) -> Option<String> {
    let mut rest = body.get(10..)?;
    let len = read_len(&mut rest)?;
    let mut rest = rest.get(len..)?;
    read_text(&mut rest)
}

fn read_len(rest: &mut &[u8]) -> Option<usize> {
    let (mut len, mut shift) = (0, 0);
    loop {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        len |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if *byte < 0x80 {
            return Some(len);
        }
    }
}

fn put_len(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

fn publish(id: u16, message: &Message, again: bool) -> Vec<u8> {
    let mut properties = Vec::new();
    for (key, value) in &message.user {
        properties.push(0x26);
        put_text(&mut properties, key);
        put_text(&mut properties, value);
    }
    let mut body = Vec::new();
    put_text(&mut body, &message.topic);
    body.extend(id.to_be_bytes());
    put_len(&mut body, properties.len());
    body.extend(properties);
    body.extend(message.payload.as_bytes());
    let mut out = vec![0x32 | if again { 8 } else { 0 }];
    put_len(&mut out, body.len());
    out.extend(body);
    out
}

fn read_publish(body: &[u8]) -> Option<(u16, Message)> {
    let mut rest = body;
    let topic = read_text(&mut rest)?;
    let (id, mut rest) = rest.split_first_chunk::<2>()?;
    let len = read_len(&mut rest)?;
    let (mut properties, payload) = rest.split_at_checked(len)?;
    let mut user = Vec::new();
    while let Some((0x26, tail)) = properties.split_first() {
        properties = tail;
        user.push((read_text(&mut properties)?, read_text(&mut properties)?));
    }
    assert!(properties.is_empty(), "only user properties are known here");
    let payload = String::from_utf8(payload.to_vec()).ok()?;
    let message = Message {
        topic,
        payload,
        user,
    };
    Some((u16::from_be_bytes(*id), message))
}

fn read_text(rest: &mut &[u8]) -> Option<String> {
    let (len, tail) = rest.split_first_chunk::<2>()?;
    let (text, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    *rest = tail;
    String::from_utf8(text.to_vec()).ok()
}

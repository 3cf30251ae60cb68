//! Entry points for fuzzers, run by libFuzzer and, over their corpora and mutations of them, by `tests/corpus.rs`.
#![allow(clippy::missing_panics_doc, reason = "a panic is what they look for")]

#[cfg(feature = "swarm")]
pub use streams::{psk_stream, set_up_frames, yamux_frames};

/// Any bytes as a key file: no panic, and a key that was read is written and read back equal.
pub fn key_file(bytes: &[u8]) {
    if let Ok(key) = crate::SwarmKey::parse(bytes) {
        let again = crate::SwarmKey::parse(key.to_file_text().as_bytes());
        assert_eq!(again.as_ref(), Ok(&key));
    }
}

#[cfg(feature = "swarm")]
mod streams {
    use std::{
        io,
        pin::{Pin, pin},
        sync::{
            Arc, OnceLock,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll, Waker},
    };

    use futures::{AsyncRead, AsyncWrite};
    use libp2p_core::muxing::StreamMuxer;

    use crate::{
        PskStream, ReceiveBudget, Side, SwarmKey,
        cipher::XSalsa20,
        handshake::{HEADER, HEADER_LEN},
        muxer::{Muxer, Stream},
        stream::KeyOutcome,
    };

    const KEY: [u8; 32] = [9; 32];
    const OURS: [u8; 24] = [1; 24];
    const THEIRS: [u8; 24] = [2; 24];
    /// Bytes of the input that say in which pieces the rest moves.
    const PIECES: usize = 8;

    /// A socket whose other side is a script: it gives and takes in pieces, and sometimes nothing for now.
    struct Script {
        pieces: [u8; PIECES],
        calls: usize,
        incoming: Vec<u8>,
        read: usize,
        written: Vec<u8>,
        /// Bytes that were read, for when the script is out of reach.
        came: Arc<AtomicUsize>,
        /// Bytes that it takes in all.
        takes: usize,
    }

    impl Script {
        fn new(pieces: [u8; PIECES], incoming: Vec<u8>, takes: usize) -> Self {
            Self {
                pieces,
                calls: 0,
                incoming,
                read: 0,
                written: Vec::new(),
                came: Arc::default(),
                takes,
            }
        }

        /// Size of the next piece; `None` for not now.
        fn piece(&mut self) -> Option<usize> {
            let piece = usize::from(self.pieces[self.calls % PIECES]);
            self.calls += 1;
            // Small ones by the byte, large ones by the buffer; never twice in a row not now.
            match piece {
                0 if self.calls % 2 == 1 => None,
                0..64 => Some(piece.max(1)),
                _ => Some((piece - 63) * 350),
            }
        }
    }

    impl AsyncRead for Script {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let Some(piece) = this.piece() else {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            };
            let left = &this.incoming[this.read..];
            let count = piece.min(left.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&left[..count]);
            this.read += count;
            this.came.store(this.read, Ordering::Relaxed);
            Poll::Ready(Ok(count))
        }
    }

    impl AsyncWrite for Script {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let Some(piece) = this.piece() else {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            };
            let count = piece.min(bytes.len()).min(this.takes - this.written.len());
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            this.written.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What our key encrypted arrives whole whatever the pieces, what another one encrypted never does, and what is written leaves as
    /// the cipher by itself would have encrypted it.
    pub fn psk_stream(bytes: &[u8]) {
        let Some((pieces, data)) = bytes.split_first_chunk::<PIECES>() else {
            return;
        };
        let ours = pieces[0] & 1 == 0;
        let mut plain = data.to_vec();
        if ours {
            plain.splice(..0, HEADER);
        }
        let mut sent = plain.clone();
        XSalsa20::new(&KEY, &THEIRS).apply(&mut sent);
        let script = Script::new(*pieces, sent, usize::MAX);
        let key = SwarmKey::from_bytes(KEY);
        let mut stream = PskStream::after_nonces(
            script,
            &key,
            Side::Dialer,
            &OURS,
            &THEIRS,
            KeyOutcome::default(),
        );
        let mut cx = Context::from_waker(Waker::noop());
        let mut got = Vec::new();
        let mut buffer = vec![0; 1 + usize::from(pieces[1]) * 300];
        let ended = loop {
            match Pin::new(&mut stream).poll_read(&mut cx, &mut buffer) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => break Ok(()),
                Poll::Ready(Ok(count)) => got.extend_from_slice(&buffer[..count]),
                Poll::Ready(Err(error)) => break Err(error),
            }
        };
        let opened = plain.get(..HEADER_LEN) == Some(&HEADER[..]);
        assert_eq!(ended.is_ok(), opened, "{ended:?}");
        assert_eq!(got, if opened { &plain[..] } else { &[] });
        if !opened {
            return;
        }
        let mut written = 0;
        while written < data.len() {
            let piece = data.len().min(written + buffer.len());
            match Pin::new(&mut stream).poll_write(&mut cx, &data[written..piece]) {
                Poll::Pending => {}
                Poll::Ready(Ok(count)) => written += count,
                Poll::Ready(Err(error)) => panic!("{error}"),
            }
        }
        while Pin::new(&mut stream).poll_flush(&mut cx).is_pending() {}
        let mut out = stream.into_socket().written;
        XSalsa20::new(&KEY, &OURS).apply(&mut out);
        assert_eq!(out, data);
    }

    /// Frames of a hostile remote, well-formed and not, against the bounded multiplexer, while its streams are read, written and
    /// dropped: no panic, what lies unread stays within its bounds, and nothing is counted once all is dropped (T6, T7).
    /// How many frames came.
    pub fn yamux_frames(bytes: &[u8]) -> usize {
        let Some((pieces, script)) = bytes.split_first_chunk::<PIECES>() else {
            return 0;
        };
        let (mut frames, mut ends) = (Vec::new(), Vec::new());
        for code in script.chunks(6).take(4096) {
            frames.extend(frame(code));
            ends.push(frames.len());
        }
        let budget = ReceiveBudget::new(128 * 1024);
        let socket = Script::new(*pieces, frames, 1 << 20);
        let came = socket.came.clone();
        let side = match pieces[0] & 2 {
            0 => Side::Listener,
            _ => Side::Dialer,
        };
        let mut muxer = Muxer::new(socket, side, 64, &budget, false);
        let mut cx = Context::from_waker(Waker::noop());
        let mut streams: Vec<Stream> = Vec::new();
        let mut buffer = [0; 4096];
        for step in 0..2048_usize {
            let act = pieces[step % PIECES].wrapping_add(step as u8);
            if Pin::new(&mut muxer).poll(&mut cx).is_ready() {
                break;
            }
            if let Poll::Ready(Ok(stream)) = Pin::new(&mut muxer).poll_inbound(&mut cx) {
                streams.push(stream);
            }
            if act % 16 == 3
                && let Poll::Ready(Ok(stream)) = Pin::new(&mut muxer).poll_outbound(&mut cx)
            {
                streams.push(stream);
            }
            if streams.is_empty() {
                continue;
            }
            let at = usize::from(act) % streams.len();
            let stream = Pin::new(&mut streams[at]);
            match act % 5 {
                0 | 1 => drop(stream.poll_read(&mut cx, &mut buffer)),
                2 => drop(stream.poll_write(&mut cx, &buffer[..usize::from(act)])),
                3 => drop(stream.poll_close(&mut cx)),
                _ => drop(streams.swap_remove(at)),
            }
            // The limit, a read of 64 KiB above it, and the floor of the one connection.
            assert!(budget.used() <= (128 + 64 + 64) * 1024, "{}", budget.used());
        }
        drop(streams);
        drop(muxer);
        assert_eq!(
            (budget.used(), budget.streams()),
            (0, 0),
            "counted for nobody"
        );
        let came = came.load(Ordering::Relaxed);
        ends.iter().take_while(|end| **end <= came).count()
    }

    /// What a member says in place of a handshake, lines and Noise frames, well-formed and not: no panic, and nobody gets in without
    /// having done it. How many frames came.
    pub fn set_up_frames(bytes: &[u8]) -> usize {
        let Some((pieces, script)) = bytes.split_first_chunk::<PIECES>() else {
            return 0;
        };
        let (mut said, mut ends) = (HEADER.to_vec(), Vec::new());
        for code in script.chunks(4).take(256) {
            said.extend(word(code));
            ends.push(said.len());
        }
        XSalsa20::new(&KEY, &THEIRS).apply(&mut said);
        let script = Script::new(*pieces, said, 1 << 20);
        let came = script.came.clone();
        let key = SwarmKey::from_bytes(KEY);
        let outcome = KeyOutcome::default();
        let side = match pieces[0] & 2 {
            0 => Side::Listener,
            _ => Side::Dialer,
        };
        let stream = PskStream::after_nonces(script, &key, side, &OURS, &THEIRS, outcome);
        let mut secured = pin!(crate::transport::secured(noise(), stream, side));
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100_000 {
            if let Poll::Ready(secured) = secured.as_mut().poll(&mut cx) {
                assert!(secured.is_err(), "got in");
                break;
            }
        }
        let came = came.load(Ordering::Relaxed);
        ends.iter().take_while(|end| **end <= came).count()
    }

    /// One identity for all: to make one takes longer than to refuse somebody.
    fn noise() -> libp2p_noise::Config {
        static NOISE: OnceLock<libp2p_noise::Config> = OnceLock::new();
        let make = || {
            let keypair = libp2p_identity::Keypair::generate_ed25519();
            libp2p_noise::Config::new(&keypair).expect("Ed25519 signs")
        };
        NOISE.get_or_init(make).clone()
    }

    /// A line or a Noise frame out of four bytes.
    fn word(code: &[u8]) -> Vec<u8> {
        let at = |n: usize| code.get(n).copied().unwrap_or(0);
        let line = |text: &[u8]| {
            let mut line = vec![text.len() as u8 + 1];
            line.extend_from_slice(text);
            line.push(b'\n');
            line
        };
        let mut word = match at(0) % 10 {
            0..3 => line(b"/noise"),
            3 => line(b"/multistream/1.0.0"),
            4 => line(b"/yamux/1.0.0"),
            5 => line(b"ls"),
            6 => line(b"na"),
            7 => vec![at(1); usize::from(at(2))],
            // Of the length that the first message has, and of any.
            8 => [&[0, 32][..], &[at(1); 32]].concat(),
            _ => {
                let len = usize::from(at(1)) * usize::from(at(2) % 8);
                let mut frame = (len as u16).to_be_bytes().to_vec();
                frame.resize(2 + len, at(3));
                frame
            }
        };
        if at(3) > 240 {
            let place = usize::from(at(2)) % word.len().max(1);
            word.iter_mut()
                .skip(place)
                .take(1)
                .for_each(|byte| *byte ^= at(1));
        }
        word
    }

    /// One frame out of six bytes: version, type, flags, stream and length are mostly of the kind that reaches deep.
    fn frame(code: &[u8]) -> Vec<u8> {
        let at = |n: usize| code.get(n).copied().unwrap_or(0);
        let version = if at(0) > 250 { at(1) } else { 0 };
        let kind = if at(0) > 240 { at(1) } else { at(0) % 4 };
        let flags = u16::from(if at(2) > 240 { at(1) } else { at(2) % 16 });
        let id = match at(3) {
            big @ 250.. => u32::MAX - u32::from(big),
            id => u32::from(id % 16),
        };
        let (len, body) = match (kind, at(4)) {
            // A length that is not followed by so much ends the connection or eats the frames behind it.
            (_, 250..) => (u32::from(at(5)) << 24, 0),
            (0, len) => (u32::from(len) * 64, usize::from(len) * 64),
            (1, credit) => (u32::from(credit) << (at(5) % 24), 0),
            (_, value) => (u32::from(value), 0),
        };
        let mut out = vec![version, kind];
        out.extend(flags.to_be_bytes());
        out.extend(id.to_be_bytes());
        out.extend(len.to_be_bytes());
        out.resize(out.len() + body, at(5));
        out
    }
}

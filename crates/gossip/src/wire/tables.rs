//! Tables of authors who write much: a check by such a table takes half the time of another, with the same outcome (docs/decisions/016).
//!
//! A check asks whether `R = s·B − k·A`. `B` is the same always and `A` the same for an author: multiples of both come out of a [`Comb`]. A
//! table costs what some ten checks cost, and memory, so only who signed well [`WORTH`] times gets one, and [`MAX_TABLES`] are kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use libp2p_identity::PublicKey;
use sha2::{Digest as _, Sha512};

use super::comb::Comb;
use super::sign::{SIGN_PREFIX, VerifyJob, VerifyOutcome};

/// Good signatures of an author before it gets a table: by then it has cost fifty times what the table costs.
pub(super) const WORTH: u32 = 64;
/// Authors with a table, of 65 KiB each: 2.1 MiB.
const MAX_TABLES: usize = 32;
/// Digits of 5 bits, rows paired: 65 KiB, 57 additions. Unpaired it were 130 KiB and 52.
const AUTHOR: (usize, bool) = (5, true);
/// Digits of 7 bits: 370 KiB once, 37 additions.
const BASE: (usize, bool) = (7, false);

/// The tables that there are. For all workers, behind a lock; tables are made and used outside it.
#[derive(Default)]
pub struct Tables {
    base: Option<Arc<Comb>>,
    authors: BTreeMap<Box<[u8]>, Held>,
    /// Checks so far: the clock of who is used.
    checks: u64,
}

/// A place in [`Tables`].
struct Held {
    /// None while it is being made.
    table: Option<Arc<Table>>,
    /// When it was last asked for.
    used: u64,
}

/// An author who signed well often enough for a table, see [`super::Keys::take_due`].
#[derive(Debug)]
pub struct Due {
    pub(super) author: Box<[u8]>,
    pub(super) key: PublicKey,
    /// [`Tables::checks`] when the first of those signatures came.
    pub(super) since: u64,
}

/// A table that is to be made.
pub struct Making {
    author: Box<[u8]>,
    key: PublicKey,
    base: Option<Arc<Comb>>,
}

impl Tables {
    /// The table of an author, by the bytes of its id. To be asked for once a check.
    pub fn of(&mut self, author: &[u8]) -> Option<Arc<Table>> {
        self.checks += 1;
        let held = self.authors.get_mut(author)?;
        held.used = self.checks;
        held.table.clone()
    }

    /// Checks so far.
    #[must_use]
    pub fn checks(&self) -> u64 {
        self.checks
    }

    /// Reserves a place for an author, if it has none. Where all are taken it is that of the author heard longest ago, if that wrote nothing
    /// since the newcomer began; else there is none, so that many authors in turn make no tables that nobody uses. Answer with
    /// [`fill`](Self::fill).
    pub fn reserve(&mut self, due: Due) -> Option<Making> {
        if self.authors.contains_key(&due.author) {
            return None;
        }
        if self.authors.len() >= MAX_TABLES {
            let eldest = self.authors.iter().min_by_key(|(_, held)| held.used)?;
            let idle = eldest.1.used < due.since && eldest.1.table.is_some();
            let victim = idle.then(|| eldest.0.clone())?;
            self.authors.remove(&victim);
        }
        let held = Held {
            table: None,
            used: self.checks,
        };
        self.authors.insert(due.author.clone(), held);
        Some(Making {
            author: due.author,
            key: due.key,
            base: self.base.clone(),
        })
    }

    /// Fills a place that was reserved, or gives it back.
    pub fn fill(&mut self, making: &Making, table: Option<Table>) {
        let Some(table) = table else {
            self.authors.remove(&making.author);
            return;
        };
        self.base.get_or_insert_with(|| table.base.clone());
        if let Some(held) = self.authors.get_mut(&making.author) {
            held.table = Some(Arc::new(table));
        }
    }

    /// Memory that is taken, in bytes: at most 2.5 MiB.
    #[must_use]
    pub fn memory(&self) -> usize {
        let authors = self.authors.values().filter_map(|held| held.table.as_ref());
        authors.map(|table| table.comb.memory()).sum::<usize>()
            + self.base.as_ref().map_or(0, |base| base.memory())
    }
}

impl Making {
    /// Makes it: 0.3 ms of work, the first one 1 ms. None if the author's key is no Ed25519 key.
    #[must_use]
    pub fn make(&self) -> Option<Table> {
        let key = self.key.clone().try_into_ed25519().ok()?;
        Table::of_point(key.to_bytes(), self.base.clone())
    }
}

/// What makes checks of one author's signatures fast.
pub struct Table {
    encoded: [u8; 32],
    /// Multiples of −A.
    comb: Comb,
    base: Arc<Comb>,
}

/// A check of which the last step is to do, the costly division, which many do together.
pub struct Open {
    found: EdwardsPoint,
    /// R as it came. It is compared as it is written, as elsewhere: only its one canonical form is taken.
    wanted: [u8; 32],
}

impl Table {
    fn of_point(encoded: [u8; 32], base: Option<Arc<Comb>>) -> Option<Self> {
        let point = CompressedEdwardsY(encoded).decompress()?;
        Some(Self {
            encoded,
            comb: Comb::new(-point, AUTHOR.0, AUTHOR.1),
            base: base
                .unwrap_or_else(|| Arc::new(Comb::new(ED25519_BASEPOINT_POINT, BASE.0, BASE.1))),
        })
    }

    fn open(&self, signature: &[u8], signed: &[&[u8]]) -> Option<Open> {
        let (wanted, s) = signature.split_first_chunk::<32>()?;
        let s = Option::from(Scalar::from_canonical_bytes(s.try_into().ok()?))?;
        let mut hash = Sha512::new();
        hash.update(wanted);
        hash.update(self.encoded);
        signed.iter().for_each(|piece| hash.update(piece));
        let k = Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
        Some(Open {
            found: self.comb.times(&k) + self.base.times(&s),
            wanted: *wanted,
        })
    }
}

impl VerifyJob {
    /// Begins to check a signature with the table of the message's author. `None` if the signature is not two numbers of the right length below
    /// their bounds: let [`run_with`](Self::run_with) judge it.
    #[must_use]
    pub fn open(&self, table: &Table) -> Option<Open> {
        let signed = [SIGN_PREFIX, self.message.signed_bytes()];
        table.open(self.message.signature(), &signed)
    }
}

impl Open {
    /// Ends checks: one outcome for each, in order. Of eight together each costs a sixth less. No outcome depends on the others.
    #[must_use]
    pub fn close(open: &[Self]) -> Vec<VerifyOutcome> {
        let found: Vec<EdwardsPoint> = open.iter().map(|open| open.found).collect();
        let found = EdwardsPoint::compress_batch_alloc(&found);
        open.iter()
            .zip(found)
            .map(|(open, found)| match found.0 == open.wanted {
                true => VerifyOutcome::Good,
                false => VerifyOutcome::Bad,
            })
            .collect()
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tables({})", self.authors.len())
    }
}

impl fmt::Debug for Making {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Making")
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Table")
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Open")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use curve25519_dalek::constants::EIGHT_TORSION;
    use gemba_testkit::{Rng, check, sim_scale};
    use libp2p_identity::{Keypair, ed25519};

    use super::*;

    /// The order of the group, little endian.
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];

    /// Both ways, one signature and several at a time; says the outcome if there is a key at all.
    struct Both {
        base: Arc<Comb>,
        tables: BTreeMap<[u8; 32], Option<Table>>,
        good: u32,
        bad: u32,
        odd: u32,
        /// To be ended together, and what each must give.
        open: Vec<Open>,
        outcomes: Vec<VerifyOutcome>,
    }

    impl Both {
        fn new() -> Self {
            Self {
                base: Arc::new(Comb::new(ED25519_BASEPOINT_POINT, BASE.0, BASE.1)),
                tables: BTreeMap::new(),
                good: 0,
                bad: 0,
                odd: 0,
                open: Vec::new(),
                outcomes: Vec::new(),
            }
        }

        fn check(&mut self, key: [u8; 32], data: &[u8], signature: &[u8]) -> Option<bool> {
            let base = self.base.clone();
            let table = self
                .tables
                .entry(key)
                .or_insert_with(|| Table::of_point(key, Some(base)));
            let decoded = ed25519::PublicKey::try_from_bytes(&key);
            assert_eq!(decoded.is_ok(), table.is_some(), "{key:02x?}");
            let good = decoded.ok()?.verify(data, signature);
            match table.as_ref()?.open(signature, &[data]) {
                Some(open) => {
                    let shown = format!("{key:02x?} {data:02x?} {signature:02x?}");
                    let outcome = if good {
                        VerifyOutcome::Good
                    } else {
                        VerifyOutcome::Bad
                    };
                    assert_eq!(
                        Open::close(std::slice::from_ref(&open)),
                        [outcome],
                        "{shown}"
                    );
                    self.open.push(open);
                    self.outcomes.push(outcome);
                }
                None => {
                    assert!(!good, "what the table leaves is bad");
                    self.odd += 1;
                }
            }
            *(if good { &mut self.good } else { &mut self.bad }) += 1;
            Some(good)
        }
    }

    impl Drop for Both {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                for (open, good) in self.open.chunks(7).zip(self.outcomes.chunks(7)) {
                    assert_eq!(Open::close(open), good);
                }
            }
        }
    }

    fn scalar(rng: &mut Rng) -> Scalar {
        Scalar::from_bytes_mod_order_wide(&rng.array())
    }

    fn challenge(r: &[u8; 32], key: &[u8; 32], data: &[u8]) -> Scalar {
        let hash = Sha512::new().chain_update(r).chain_update(key);
        Scalar::from_bytes_mod_order_wide(&hash.chain_update(data).finalize().into())
    }

    fn join(r: &[u8; 32], s: &[u8; 32]) -> Vec<u8> {
        [&r[..], &s[..]].concat()
    }

    fn plus(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        let mut carry = 0;
        std::array::from_fn(|i| {
            let sum = u16::from(a[i]) + u16::from(b[i]) + carry;
            carry = sum >> 8;
            sum as u8
        })
    }

    /// Every way to write a point of small order, and all others that write a number of 255 bits that is not below the prime.
    fn odd_encodings() -> Vec<[u8; 32]> {
        let mut all: Vec<[u8; 32]> = EIGHT_TORSION.iter().map(|p| p.compress().0).collect();
        for low in 0xed..=0xff {
            let mut bytes = [0xff; 32];
            bytes[0] = low;
            bytes[31] = 0x7f;
            all.push(bytes);
        }
        let signed = all.clone().into_iter().map(|mut bytes| {
            bytes[31] ^= 0x80;
            bytes
        });
        all.extend(signed);
        all
    }

    #[test]
    fn go_5_points_of_small_order_and_odd_encodings_count_by_a_table_as_without() {
        let mut both = Both::new();
        let mut minus_one = ORDER;
        minus_one[0] -= 1;
        let mut one = [0; 32];
        one[0] = 1;
        let largest = std::array::from_fn(|i| if i == 31 { 0x1f } else { 0xff });
        let numbers = [
            [0; 32],
            one,
            minus_one,
            ORDER,
            plus(ORDER, one),
            largest,
            [0xff; 32],
        ];
        let odd = odd_encodings();
        for key in &odd {
            for r in &odd {
                for s in &numbers {
                    // The challenge decides.
                    for n in 0..2_u8 {
                        both.check(*key, &[n], &join(r, s));
                    }
                }
            }
        }
        let (good, bad, odd) = (both.good, both.bad, both.odd);
        assert!(
            good > 40 && bad > 5000 && odd > 5000,
            "{good}, {bad}, {odd}"
        );
    }

    #[test]
    fn go_5_parts_of_small_order_count_by_a_table_as_without() {
        let mut both = Both::new();
        let mut good = [0; 2];
        check!(sim_scale(1000), |rng| {
            let (a, r) = (scalar(rng), scalar(rng));
            let key = ED25519_BASEPOINT_POINT * a + *rng.pick(&EIGHT_TORSION);
            let key = key.compress().0;
            let data = rng.bytes(20);
            for torsion in &EIGHT_TORSION {
                let first = (ED25519_BASEPOINT_POINT * r + *torsion).compress().0;
                let s = r + challenge(&first, &key, &data) * a;
                let signature = join(&first, s.as_bytes());
                let taken = both.check(key, &data, &signature);
                good[usize::from(taken == Some(true))] += 1;
                // The same number, written larger.
                let larger = join(&first, &plus(*s.as_bytes(), ORDER));
                assert_eq!(both.check(key, &data, &larger), Some(false));
            }
        });
        assert!(good[0] > 100 && good[1] > 20, "{good:?}");
    }

    #[test]
    fn go_5_good_signatures_and_changed_ones_count_by_a_table_as_without() {
        let mut both = Both::new();
        check!(sim_scale(400), |rng| {
            let keypair = Keypair::generate_ed25519();
            let keypair = keypair.try_into_ed25519().unwrap();
            let key = keypair.public().to_bytes();
            let len = rng.length(1000) as usize;
            let data = rng.bytes(len);
            let signature = keypair.sign(&data);
            assert_eq!(both.check(key, &data, &signature), Some(true));
            for _ in 0..8 {
                let (mut data, mut signature, mut key) = (data.clone(), signature.clone(), key);
                match rng.below(6) {
                    0 if !data.is_empty() => {
                        let at = rng.index(data.len());
                        data[at] ^= 1 << rng.below(8);
                    }
                    1 => key[rng.index(32)] ^= 1 << rng.below(8),
                    2 => signature.truncate(rng.index(64)),
                    3 => signature.push(0),
                    4 => signature[rng.index(32)] ^= 1 << rng.below(8),
                    _ => signature[32 + rng.index(32)] ^= 1 << rng.below(8),
                }
                both.check(key, &data, &signature);
            }
        });
        assert!(both.bad > both.good && both.good > 0);
    }

    fn due(author: &[u8], since: u64) -> Due {
        Due {
            author: author.into(),
            key: Keypair::generate_ed25519().public(),
            since,
        }
    }

    #[test]
    fn tables_are_bounded_and_the_one_used_longest_ago_leaves() {
        let mut tables = Tables::default();
        let name = |n: usize| n.to_be_bytes();
        for n in 0..MAX_TABLES {
            assert!(tables.of(&name(n)).is_none());
            let making = tables.reserve(due(&name(n), 0)).unwrap();
            assert!(tables.reserve(due(&name(n), 0)).is_none(), "one makes it");
            assert!(tables.of(&name(n)).is_none(), "it is being made");
            tables.fill(&making, making.make());
            assert!(tables.of(&name(n)).is_some());
        }
        let full = tables.memory();
        assert!(full <= 5 << 19, "{full} bytes");
        assert!(full > MAX_TABLES * (64 << 10), "all of it is counted");
        let write = |tables: &mut Tables, silent: usize| {
            for n in (0..MAX_TABLES).filter(|n| *n != silent) {
                assert!(tables.of(&name(n)).is_some());
            }
        };
        // A newcomer while all others write, and one while the fourth is silent.
        let since = tables.checks();
        write(&mut tables, usize::MAX);
        assert!(tables.reserve(due(b"new", since)).is_none());
        let since = tables.checks() + 1;
        write(&mut tables, 3);
        let making = tables.reserve(due(b"new", since)).unwrap();
        tables.fill(&making, making.make());
        assert!(tables.of(b"new").is_some() && tables.of(&name(3)).is_none());
        assert_eq!(tables.memory(), full);
        // One that could not be made leaves its place.
        let since = tables.checks() + 1;
        let making = tables.reserve(due(b"newer", since)).unwrap();
        assert_eq!(tables.authors.len(), MAX_TABLES);
        tables.fill(&making, None);
        assert_eq!(tables.authors.len(), MAX_TABLES - 1);
    }
}

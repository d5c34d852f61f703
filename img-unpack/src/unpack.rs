//! Layers into the store: each read, decompressed, hashed and applied by threads of its own, several at a time.

use crate::apply::{Target, apply};
use crate::archive::Archive;
use crate::compression::{Compression, decoder};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::listing;
use crate::manifest::{Image, Layer};
use crate::merged::Merged;
use crate::node::{Owners, Policy, open_dir};
use crate::progress::Progress;
use crate::record;
use crate::source::{Section, Source, too_large};
use crate::store::Used;
use chain::remove::remove_tree;
use chain::store::{Lock, Store};
use chain::trace::op;
use chain::{Error, Result, ResultExt};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

const CHUNK: usize = 128 << 10;
/// Pieces of a stream between two of its threads: enough that none waits for the scheduler, 3 MiB a layer.
const AHEAD: usize = 12;

/// What is the same for all layers of an image.
pub struct Unpacking<'a> {
    /// Where they go.
    pub store: &'a Store,
    /// Where they come from.
    pub source: &'a Source,
    /// Whose they are.
    pub image: &'a Image,
    /// What this process can do.
    pub policy: Policy,
    /// The most plain bytes, of all layers together.
    pub limit: Option<u64>,
    /// Layers that mounts use.
    pub used: &'a Used,
    /// Told how far it is.
    pub progress: &'a Progress,
}

/// Layers that are in the store, held against removal.
pub struct Unpacked {
    /// Locks on all of them, base first.
    pub locks: Vec<Lock>,
    /// How many were made now.
    pub made: usize,
    /// What could not be done and is no error, layer by layer.
    pub notes: Vec<String>,
}

/// A layer that is in the store; with notes if it was made now.
type Made = (Lock, Option<Vec<String>>);

#[derive(Clone, Copy, PartialEq)]
enum State {
    Waiting,
    Done,
    Failed,
}

struct Shared<'a> {
    job: &'a Unpacking<'a>,
    states: Mutex<Vec<State>>,
    changed: Condvar,
    stop: AtomicBool,
    /// The layer that failed by itself, not because another did.
    culprit: Mutex<Option<usize>>,
    bytes: AtomicU64,
}

/// Brings all layers of the image into the store that are not there, each once even if several processes do this.
///
/// Errors: the first layer's that failed; then nothing of it, and of those above it, is in the store.
pub fn layers(job: &Unpacking<'_>) -> Result<Unpacked> {
    let count = job.image.layers.len();
    for dir in [job.store.layers(), job.store.staging()] {
        job.store.make(&dir)?;
    }
    sweep(job.store);
    let shared = Shared {
        job,
        states: Mutex::new(vec![State::Waiting; count]),
        changed: Condvar::new(),
        stop: AtomicBool::new(false),
        culprit: Mutex::new(None),
        bytes: AtomicU64::new(0),
    };
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Result<Made>)>> = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(2, usize::from).clamp(2, 8).min(count);
    thread::scope(|scope| {
        let ticker = scope.spawn(|| job.progress.run());
        let workers: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        // In order, so that what a layer waits for is always with someone already.
                        let index = next.fetch_add(1, Relaxed);
                        if index >= count || shared.stop.load(Relaxed) {
                            return;
                        }
                        let result = shared.layer(index);
                        shared.set(index, if result.is_ok() { State::Done } else { State::Failed });
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                    }
                })
            })
            .collect();
        for worker in workers {
            let _ = worker.join();
        }
        job.progress.end();
        ticker.thread().unpark();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let culprit = shared.culprit.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| (Some(*index) != culprit, *index));
    let mut unpacked = Unpacked { locks: Vec::new(), made: 0, notes: Vec::new() };
    for (index, result) in results {
        let (lock, notes) = result.map_err(|error| error.within(place(job.image, index)))?;
        unpacked.locks.push(lock);
        unpacked.made += usize::from(notes.is_some());
        unpacked.notes.extend(notes.into_iter().flatten().map(|line| format!("{}: {line}", place(job.image, index))));
    }
    Ok(unpacked)
}

fn place(image: &Image, index: usize) -> String {
    let layer = &image.layers[index];
    let digest = layer.blob.as_ref().map_or(&layer.diff_id, |(digest, _)| digest);
    format!("layer {} of {} ({}:{})", index + 1, image.layers.len(), digest.algorithm(), digest.short())
}

/// Removes what earlier processes left in the staging directory when they were killed. What is in use is locked; what
/// cannot be removed stays, and is in nobody's way.
pub fn sweep(store: &Store) {
    for entry in fs::read_dir(store.staging()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = ["layer-", "removed-"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
        if ours && let Ok(Some(_lock)) = Lock::try_exclusive(&entry.path()) {
            let _ = remove_tree(&entry.path());
        }
    }
}

impl Shared<'_> {
    fn set(&self, index: usize, state: State) {
        if state == State::Failed {
            self.culprit.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(index);
            self.stop.store(true, Relaxed);
        }
        self.states.lock().unwrap_or_else(PoisonError::into_inner)[index] = state;
        self.changed.notify_all();
    }

    /// Waits for the layers below `index`, and opens them.
    fn below(&self, index: usize) -> Result<Merged> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        while states[..index].contains(&State::Waiting) && !self.stop.load(Relaxed) {
            states = self.changed.wait(states).unwrap_or_else(PoisonError::into_inner);
        }
        if states[..index].iter().any(|&state| state != State::Done) {
            return Err(Error::new("a layer below could not be unpacked"));
        }
        drop(states);
        let open = |layer: &Layer| open_dir(&record::layer_path(self.job.store, &layer.chain_id.to_string()));
        let layers = self.job.image.layers[..index].iter().rev().map(open).collect::<Result<_>>()?;
        Ok(Merged::root(layers, self.job.policy.opaque))
    }

    fn layer(&self, index: usize) -> Result<Made> {
        let (store, layer) = (self.job.store, &self.job.image.layers[index]);
        let path = record::layer_path(store, &layer.chain_id.to_string());
        if let Some(lock) = existing(&path, self.job.used)? {
            self.job.progress.skip(layer.blob.as_ref().map_or(0, |(_, size)| *size));
            return Ok((lock, None));
        }
        // Who has this lock makes the layer; others wait, and find it.
        let making = making(store, layer.chain_id.hex())?;
        if let Some(lock) = existing(&path, self.job.used)? {
            return Ok((lock, None));
        }
        let (staging, lock) = staging(store, layer.chain_id.short())?;
        let made = self.make(index, &staging).and_then(|notes| {
            lock.file().lock_shared().call(format_args!("flock({staging:?}, LOCK_SH)"))?;
            op(format_args!("rename({staging:?}, {path:?})"), || fs::rename(&staging, &path))?;
            Ok(notes)
        });
        match made {
            Ok(notes) => {
                drop(making);
                Ok((lock, Some(notes)))
            }
            Err(error) => {
                let _ = remove_tree(&staging);
                Err(match error.errno() {
                    Some(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => error.hint(format_args!(
                        "nothing is left of this layer; make room for the store {:?}",
                        store.path()
                    )),
                    _ => error,
                })
            }
        }
    }

    /// Everything of a layer but its renaming into place.
    fn make(&self, index: usize, staging: &Path) -> Result<Vec<String>> {
        let layer = &self.job.image.layers[index];
        let content = self.job.source.content(&layer.content)?;
        let content = content.ok_or_else(|| Error::new(format_args!("{:?} is not in the image", layer.content)))?;
        if let Some((_, size)) = &layer.blob
            && *size != content.size()
        {
            return Err(Error::new(format_args!("has {} bytes, {size} are stated", content.size())));
        }
        let applied = self.stream(index, content, staging)?;
        let path = record::layer_path(self.job.store, &layer.chain_id.to_string());
        let root = open_dir(staging)?;
        let size = record::write_with(&path.with_added_extension("list"), |list| {
            listing::make(&root, |stat, _| applied.content(stat.st_ino), list)
        })?;
        let parent = index.checked_sub(1).map(|below| self.job.image.layers[below].chain_id.to_string());
        let owners = if self.job.policy.owners == Owners::Exact { "exact" } else { "single" };
        record::write(
            &path.with_added_extension("json"),
            &json!({"diffID": layer.diff_id.to_string(), "parent": parent, "members": applied.members, "size": size,
                "owners": owners, "opaque": self.job.policy.opaque}),
        )?;
        record::write_bytes(&path.with_added_extension("boot"), record::boot().as_bytes())?;
        Ok(applied.notes.lines().collect())
    }

    /// Reader, hasher and applier of one layer, connected by pieces of its plain stream.
    fn stream(&self, index: usize, content: Section, staging: &Path) -> Result<crate::apply::Applied> {
        let layer = &self.job.image.layers[index];
        let (to_hasher, from_reader) = sync_channel(AHEAD);
        let (to_applier, from_hasher) = sync_channel(AHEAD);
        let (give_back, used) = channel();
        thread::scope(|scope| {
            let blob = layer.blob.as_ref().map(|(digest, _)| digest);
            let reader = scope.spawn(move || self.read(content, blob, to_hasher, used));
            let hasher = scope.spawn(move || hash(layer.diff_id.algorithm(), from_reader, to_applier));
            let mut chunks = Chunks { from: from_hasher, give_back, piece: Vec::new(), at: 0 };
            let below = || self.below(index);
            let holes = |bytes| self.count(bytes).map_err(|_| too_large(self.job.limit));
            let target = Target { dir: open_dir(staging)?, below: &below, policy: self.job.policy, holes: &holes };
            let applied = apply(&mut Archive::new(&mut chunks), target);
            drop(chunks);
            let (read, hashed) = (reader.join(), hasher.join());
            let applied = applied?;
            if let Some(stated) = blob {
                let actual = read.unwrap_or_default();
                if actual.as_ref().is_some_and(|actual| actual != stated) {
                    return Err(Error::new(format_args!(
                        "content has the digest {}, {stated} is stated",
                        shown(actual)
                    )));
                }
            }
            let actual = hashed.ok();
            if actual.as_ref() != Some(&layer.diff_id) {
                return Err(Error::new(format_args!(
                    "tar stream has the digest {}, diff_ids states {}",
                    shown(actual),
                    layer.diff_id
                )));
            }
            Ok(applied)
        })
    }

    /// Reads and decompresses `content`; its digest, if `stated` is to be compared with it.
    fn read(
        &self,
        content: Section,
        stated: Option<&Digest>,
        to: SyncSender<io::Result<Vec<u8>>>,
        used: Receiver<Vec<u8>>,
    ) -> Option<Digest> {
        let hasher = Mutex::new(stated.map(|stated| Hasher::new(stated.algorithm())));
        let input = Counted { input: content, hasher: &hasher, progress: self.job.progress };
        let mut plain = match decoder(BufReader::with_capacity(CHUNK, input)) {
            Ok((plain, Compression::Plain | Compression::Gzip | Compression::Zstd)) => plain,
            Err(error) => {
                let _ = to.send(Err(error));
                return None;
            }
        };
        loop {
            let mut piece = used.try_recv().unwrap_or_default();
            piece.resize(CHUNK, 0);
            let read = fill(&mut plain, &mut piece).and_then(|length| {
                self.count(length as u64)?;
                Ok(length)
            });
            match read {
                Ok(0) => break,
                Ok(length) => {
                    piece.truncate(length);
                    if to.send(Ok(piece)).is_err() {
                        return None;
                    }
                }
                Err(error) => {
                    let _ = to.send(Err(error));
                    return None;
                }
            }
        }
        drop(plain);
        hasher.into_inner().unwrap_or_else(PoisonError::into_inner).map(Hasher::finish)
    }

    fn count(&self, bytes: u64) -> io::Result<()> {
        let total = self.bytes.fetch_add(bytes, Relaxed).saturating_add(bytes);
        if self.job.limit.is_some_and(|limit| total > limit) {
            return Err(io::Error::other(too_large(self.job.limit).to_string()));
        }
        if self.stop.load(Relaxed) {
            return Err(io::Error::other("another layer could not be unpacked"));
        }
        Ok(())
    }
}

fn shown(digest: Option<Digest>) -> String {
    digest.map_or_else(|| "(none)".into(), |digest| digest.to_string())
}

/// The layer at `path`, locked, if it is there. One that an earlier boot may have left without its data is checked first.
fn existing(path: &Path, used: &Used) -> Result<Option<Lock>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let Ok(lock) = Lock::shared(path) else { return Ok(None) };
    if record::unsettled(path) {
        if !listing::compare(path)?.is_empty() {
            drop(lock);
            crate::store::discard(path, used)?;
            return Ok(None);
        }
        record::write_bytes(&path.with_added_extension("boot"), record::boot().as_bytes())?;
    }
    Ok(Some(lock))
}

/// The right to make the layer `hex`: a lock on a file that is there as long as someone makes it.
struct Making {
    path: PathBuf,
    _lock: Lock,
}

impl Drop for Making {
    fn drop(&mut self) {
        // Before the lock ends: who waits for it sees that its file is gone, and makes a new one.
        let _ = fs::remove_file(&self.path);
    }
}

fn making(store: &Store, hex: &str) -> Result<Making> {
    let path = store.staging().join(format!("{hex}.lock"));
    loop {
        File::options().create(true).append(true).open(&path).call(format_args!("open({path:?}, O_CREAT)"))?;
        match Lock::exclusive(&path) {
            Ok(lock) => return Ok(Making { path, _lock: lock }),
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A new directory to make a layer in, locked so that no one takes it for left over.
fn staging(store: &Store, short: &str) -> Result<(PathBuf, Lock)> {
    for count in 0.. {
        let path = store.staging().join(format!("layer-{short}-{}-{count}", std::process::id()));
        let made = op(format_args!("mkdir({path:?}, 0700)"), || fs::DirBuilder::new().mode(0o700).create(&path));
        match made {
            Ok(()) => {}
            Err(error) if error.errno() == Some(nix::errno::Errno::EEXIST) && count < 1000 => continue,
            Err(error) => return Err(error),
        }
        // Someone may have swept it before we locked it.
        if let Ok(Some(lock)) = Lock::try_exclusive(&path) {
            return Ok((path, lock));
        }
    }
    Err(Error::new("no free name in the staging directory"))
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn hash(algorithm: Algorithm, from: Receiver<io::Result<Vec<u8>>>, to: SyncSender<io::Result<Vec<u8>>>) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    for piece in from {
        if let Ok(piece) = &piece {
            hasher.update(piece);
        }
        if to.send(piece).is_err() {
            break;
        }
    }
    hasher.finish()
}

/// A compressed stream that is hashed and counted as it is read.
struct Counted<'a> {
    input: Section,
    hasher: &'a Mutex<Option<Hasher>>,
    progress: &'a Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        if let Some(hasher) = self.hasher.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            hasher.update(&buffer[..length]);
        }
        self.progress.read(length as u64);
        Ok(length)
    }
}

/// The pieces of a stream as one.
struct Chunks {
    from: Receiver<io::Result<Vec<u8>>>,
    give_back: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            match self.from.recv() {
                Ok(piece) => {
                    let old = std::mem::replace(&mut self.piece, piece?);
                    self.at = 0;
                    if old.capacity() > 0 {
                        let _ = self.give_back.send(old);
                    }
                }
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at = (self.at + length).min(self.piece.len());
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.consume(length);
        Ok(length)
    }
}

//! An archive in a bucket of an object store. Endpoint and credentials come from the environment, by the variables that
//! the tools of each cloud use.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt,
    PutMode, PutPayload, RetryConfig,
};
use tokio::runtime::Runtime;

use super::address::Cloud;
use super::store::{Each, Entry, Put, Store, Upload};
use crate::error::{Error, ErrorKind, Result};
use crate::net;

/// One request, the bytes of an object included.
const REQUEST_MAX: &str = "120 seconds";
const CONNECT_MAX: &str = "10 seconds";
/// One call, with all its requests and what is tried again.
const CALL_MAX: Duration = Duration::from_secs(300);
/// Requests that failed are made again so often, for so long.
const RETRIES: usize = 3;
const RETRY_FOR: Duration = Duration::from_secs(20);
/// Parts of large objects: at most 10,000 of them, so that an object may have 160 GiB.
const PART: usize = 16 << 20;

/// A bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Box<dyn ObjectStore>,
    prefix: String,
    /// Where requests run: calls come from threads that may wait.
    runtime: Option<Runtime>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whatever thread it is that lets go of it last.
            runtime.shutdown_background();
        }
    }
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() },
        max_retries: RETRIES,
        retry_timeout: RETRY_FOR,
    }
}

impl Bucket {
    pub(super) fn open(cloud: Cloud, bucket: &str, prefix: &str) -> Result<Self> {
        // It is there already when another archive was opened before.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let store = client(cloud, bucket).map_err(|e| {
            let text = format!(
                "the object store of bucket '{bucket}' can't be used: {}; look at the environment of this process",
                words(&e)
            );
            Error::new(ErrorKind::Config, text)
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("archive")
            .enable_all()
            .build()
            .map_err(|e| Error::from(e).wrap("cannot start a thread for the archive"))?;
        let inner = Inner { store, prefix: prefix.to_owned(), runtime: Some(runtime) };
        Ok(Self { inner: Arc::new(inner) })
    }
}

fn client(cloud: Cloud, bucket: &str) -> object_store::Result<Box<dyn ObjectStore>> {
    let limits = [
        (ClientConfigKey::Timeout, REQUEST_MAX),
        (ClientConfigKey::ConnectTimeout, CONNECT_MAX),
        (ClientConfigKey::UserAgent, concat!("towline/", env!("CARGO_PKG_VERSION"))),
    ];
    Ok(match cloud {
        Cloud::S3 => {
            let start = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry());
            let with = |b: AmazonS3Builder, (k, v)| b.with_config(AmazonS3ConfigKey::Client(k), v);
            Box::new(limits.into_iter().fold(start, with).build()?)
        }
        Cloud::Google => {
            let start = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry());
            let with = |b: GoogleCloudStorageBuilder, (k, v)| b.with_config(GoogleConfigKey::Client(k), v);
            Box::new(limits.into_iter().fold(start, with).build()?)
        }
        Cloud::Azure => {
            let start = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry());
            let with = |b: MicrosoftAzureBuilder, (k, v)| b.with_config(AzureConfigKey::Client(k), v);
            Box::new(limits.into_iter().fold(start, with).build()?)
        }
    })
}

/// What an object store says, on one line of bounded length.
fn words(e: &object_store::Error) -> String {
    use std::error::Error as _;
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = c.source();
    }
    net::one_line(&text)
}

fn failed(verb: &str, name: &str, e: &object_store::Error) -> Error {
    use object_store::Error as E;
    let kind = match e {
        E::NotFound { .. } => ErrorKind::Missing,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::Refused,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("cannot {verb} '{name}' in the archive: {}", words(e)))
}

impl Inner {
    fn path(&self, name: &str) -> Path {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => Path::from(name),
            (false, true) => Path::from(self.prefix.as_str()),
            (false, false) => Path::from(format!("{}/{name}", self.prefix)),
        }
    }

    fn name<'a>(&self, path: &'a Path) -> Option<&'a str> {
        let path = path.as_ref();
        if self.prefix.is_empty() {
            return Some(path);
        }
        path.strip_prefix(self.prefix.as_str())?.strip_prefix('/')
    }

    /// Runs a call to its end, or to the end of its time.
    fn call<T>(
        &self,
        verb: &str,
        name: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<object_store::Result<T>> {
        let Some(runtime) = &self.runtime else {
            return Err(Error::new(ErrorKind::Cancelled, "the archive is closed"));
        };
        let timed = async { tokio::time::timeout(CALL_MAX, call).await };
        runtime.handle().block_on(timed).map_err(|_| {
            let text =
                format!("cannot {verb} '{name}' in the archive: no answer within {}s", CALL_MAX.as_secs());
            Error::new(ErrorKind::Unavailable, text)
        })
    }

    fn done<T>(
        &self,
        verb: &str,
        name: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        self.call(verb, name, call)?.map_err(|e| failed(verb, name, &e))
    }
}

impl Store for Bucket {
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Put> {
        let (inner, path) = (&self.inner, self.inner.path(name));
        let put = |mode: PutMode| {
            let payload = PutPayload::from(bytes.to_vec());
            inner.call("write", name, inner.store.put_opts(&path, payload, mode.into()))
        };
        match put(PutMode::Create)? {
            Ok(_) => Ok(Put::Made),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Put::There)
            }
            // Not every store knows conditions: then a look has to do.
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                if self.size(name)?.is_some() {
                    return Ok(Put::There);
                }
                put(PutMode::Overwrite)?.map(|_| Put::Made).map_err(|e| failed("write", name, &e))
            }
            Err(e) => Err(failed("write", name, &e)),
        }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.inner.path(name);
        let payload = PutPayload::from(bytes.to_vec());
        self.inner.done("write", name, self.inner.store.put(&path, payload)).map(|_| ())
    }

    fn upload(&self, name: &str) -> Result<Box<dyn Upload>> {
        let path = self.inner.path(name);
        let parts = self.inner.done("begin", name, self.inner.store.put_multipart(&path))?;
        Ok(Box::new(Parts {
            inner: Arc::clone(&self.inner),
            name: name.to_owned(),
            parts: Some(parts),
            held: Vec::new(),
        }))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        let size = match self.size(name)? {
            Some(size) => size,
            None => return Ok(None),
        };
        // A range that begins at the end is an error to most stores.
        let range = range.start..range.end.min(size);
        if range.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let (inner, path) = (&self.inner, self.inner.path(name));
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let get = async { inner.store.get_opts(&path, options).await?.bytes().await };
        match inner.call("read", name, get)? {
            Ok(bytes) if bytes.len() as u64 <= range.end - range.start => Ok(Some(bytes.to_vec())),
            Ok(_) => {
                let text = format!("the archive sent more of '{name}' than was asked for");
                Err(Error::new(ErrorKind::Corrupt, text))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed("read", name, &e)),
        }
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        let path = self.inner.path(name);
        match self.inner.call("look at", name, self.inner.store.head(&path))? {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed("look at", name, &e)),
        }
    }

    fn list(&self, dir: &str, after: &str, each: &mut Each<'_>) -> Result<()> {
        let inner = &self.inner;
        let path = inner.path(dir);
        let below = (!path.as_ref().is_empty()).then_some(&path);
        let mut stream = match after {
            "" => inner.store.list(below),
            _ => inner.store.list_with_offset(below, &inner.path(after)),
        };
        loop {
            // A page is fetched when the one before is used up.
            let next = async { stream.next().await.transpose() };
            let Some(meta) = inner.done("list", dir, next)? else { return Ok(()) };
            let Some(name) = inner.name(&meta.location).filter(|n| super::names::valid(n)) else { continue };
            let (name, modified) = (name.to_owned(), meta.last_modified.timestamp());
            if !each(Entry { name, size: meta.size, modified })? {
                return Ok(());
            }
        }
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.inner.path(name);
        match self.inner.call("remove", name, self.inner.store.delete(&path))? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed("remove", name, &e)),
        }
    }
}

/// A large object on its way, in parts. Dropped before its end it is taken back.
struct Parts {
    inner: Arc<Inner>,
    name: String,
    parts: Option<Box<dyn MultipartUpload>>,
    held: Vec<u8>,
}

impl Parts {
    fn send(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.held);
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let part = parts.put_part(PutPayload::from(bytes));
        self.inner.done("write", &self.name, part)
    }
}

impl Upload for Parts {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(PART - self.held.len());
            self.held.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.held.len() == PART {
                self.send()?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if !self.held.is_empty() {
            self.send()?;
        }
        let Some(mut parts) = self.parts.take() else { return Ok(()) };
        let done = self.inner.done("end", &self.name, parts.complete()).map(|_| ());
        if done.is_err() {
            self.parts = Some(parts);
        }
        done
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            // What stays for want of this the store's own rules remove.
            let _ = self.inner.call("take back", &self.name, parts.abort());
        }
    }
}

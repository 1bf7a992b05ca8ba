//! Pages over HTTP: figures for Prometheus and one word for load balancers. Off unless `http` names an address; they
//! only read, and hold no secret.
//!
//! | request | answer |
//! | --- | --- |
//! | GET `/metrics` | figures, as OpenMetrics where that is asked for; see [`metrics`] |
//! | GET of the other pages | 200 or 503 and a small JSON object with the reason; see [`pages`] |
//! | HEAD | the same without the body |
//! | OPTIONS | the same without the body: what load balancers ask with |
//! | any other method | 405 |
//! | any other path | 404 with the list of pages |
//! | a query that is not understood | 400 |
//!
//! Bodies of requests are not read. Connections, the size of a request's head, the time for it, and the life of a
//! connection are bounded; when there are too many connections the oldest one makes room.

mod metrics;
mod pages;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::net::Quiet;
use crate::status::View;
use metrics::Format;
use pages::{LagLimit, Steps};

/// Most connections at once.
const CONNECTIONS: usize = 64;
/// Most bytes of a request's head.
const HEAD: usize = 8 << 10;
/// Time for a whole head, from when the connection waits for one.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(120);
/// Longest wait for the status.
const STATUS_TIME: Duration = Duration::from_secs(5);
/// Looks at the status that may be under way at once.
const LOOKS: usize = 4;
/// After a failed accept: most often there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// What may be asked with.
const METHODS: &str = "GET, HEAD, OPTIONS";

/// Gives the status document.
pub type Source = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Value>> + Send>> + Send + Sync>;

/// Opens the address of the pages.
///
/// # Errors
/// [`ErrorKind::Config`] when it can't be had.
pub async fn open(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        Error::from(e)
            .with_kind(ErrorKind::Config)
            .wrap(&format!("cannot serve pages on {address} (key 'http')"))
    })
}

/// What all connections share.
struct Desk {
    source: Source,
    steps: Steps,
    looks: Arc<Semaphore>,
}

/// Serves pages until cancelled.
pub async fn serve(listener: TcpListener, source: Source, cancel: CancellationToken) {
    let desk = Arc::new(Desk { source, steps: Steps::default(), looks: Arc::new(Semaphore::new(LOOKS)) });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let open = Arc::new(Open::default());
    let quiet = Quiet::new(Duration::from_secs(60));
    for number in 0.. {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                if let Some(n) = quiet.line() {
                    tracing::warn!("cannot accept a connection for pages: {e}{n}");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if places.available_permits() == 0 {
            open.drop_oldest();
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let (desk, open, cancel) = (Arc::clone(&desk), Arc::clone(&open), cancel.child_token());
        open.add(number, &cancel);
        // A panic: this connection ends.
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(LIFE) => {}
                () = converse(stream, &desk) => {}
            }
            open.remove(number);
        });
    }
}

/// The connections, oldest first.
#[derive(Default)]
struct Open(Mutex<VecDeque<(u64, CancellationToken)>>);

impl Open {
    fn with<T>(&self, f: impl FnOnce(&mut VecDeque<(u64, CancellationToken)>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, number: u64, cancel: &CancellationToken) {
        self.with(|all| all.push_back((number, cancel.clone())));
    }

    fn remove(&self, number: u64) {
        self.with(|all| all.retain(|(n, _)| *n != number));
    }

    fn drop_oldest(&self) {
        if let Some((_, cancel)) = self.with(VecDeque::pop_front) {
            cancel.cancel();
        }
    }
}

async fn converse(stream: TcpStream, desk: &Arc<Desk>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| {
        let desk = Arc::clone(desk);
        async move { Ok::<_, Infallible>(respond(&request, &desk).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_header_size(HEAD)
        .max_buf_size(2 * HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        tracing::debug!("a connection for pages ended: {e}");
    }
}

type Reply = Response<Full<Bytes>>;

fn reply(code: StatusCode, content: &'static str, text: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(text)));
    *reply.status_mut() = code;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ALLOW, HeaderValue::from_static(METHODS));
    reply
}

fn refuse(code: StatusCode, reason: &str) -> Reply {
    told(code, &json!({"ok": false, "reason": reason, "pages": pages::PAGES}))
}

fn told(code: StatusCode, value: &Value) -> Reply {
    reply(code, "application/json", format!("{value}\n"))
}

async fn respond(request: &Request<Incoming>, desk: &Desk) -> Reply {
    let (method, path) = (request.method(), request.uri().path());
    if !pages::PAGES.contains(&path) {
        return refuse(StatusCode::NOT_FOUND, "there is no such page");
    }
    if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "pages are only read");
    }
    let limit = match (path, LagLimit::of_query(request.uri().query())) {
        (_, Err(reason)) => return refuse(StatusCode::BAD_REQUEST, &reason),
        (page, Ok(Some(_))) if page != "/follower" => {
            return refuse(StatusCode::BAD_REQUEST, "only /follower takes a lag");
        }
        (_, Ok(limit)) => limit,
    };
    let status = match look(desk).await {
        Ok(status) => status,
        Err(e) => return refuse(StatusCode::SERVICE_UNAVAILABLE, &e.to_string()),
    };
    let accept = request.headers().get(ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
    let mut reply = shown(path, limit, status, desk, Format::accepted(accept));
    if *method == Method::OPTIONS {
        *reply.body_mut() = Full::default();
    }
    reply
}

/// The status, unless it takes too long: a stuck file system must not pile up threads.
async fn look(desk: &Desk) -> Result<Value> {
    let slow = || Error::new(ErrorKind::Unavailable, "the node takes too long to say how it is");
    let (looks, source) = (Arc::clone(&desk.looks), Arc::clone(&desk.source));
    // A panic: an error for who asked.
    let look = tokio::spawn(async move {
        let _turn = looks.acquire_owned().await.map_err(|_| slow())?;
        source().await
    });
    // One that hangs keeps its turn, so that there are never more than a few.
    tokio::time::timeout(STATUS_TIME, look).await.map_err(|_| slow())?.map_err(|_| slow())?
}

fn shown(path: &str, limit: Option<LagLimit>, status: Value, desk: &Desk, format: Format) -> Reply {
    match pages::answer(path, limit, View(&status), &desk.steps) {
        Some(answer) => {
            let code = if answer.yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            told(code, &pages::body(&answer, View(&status)))
        }
        None => match metrics::page(status, format) {
            Ok(text) => reply(StatusCode::OK, format.content_type(), text),
            Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        },
    }
}

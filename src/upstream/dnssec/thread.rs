//! The thread on which answers are validated, so that what a zone costs is not paid by whoever asks for another.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::work::Asker;
use super::{Checked, Mode, check};
use crate::record::{Answer, Question};
use crate::time::Clock;
use crate::upstream::failure::{Attempts, UpstreamError};
use crate::upstream::inflight::Inflight;
use crate::upstream::server::Reply;
use crate::upstream::{Ports, Upstream, ViewId};

/// Answers that wait to be validated, or are being: as many as there is room for on the slow path. They mostly wait for keys.
const QUEUE: usize = 8_192;

/// See the module. The thread is started with the first answer.
#[derive(Debug)]
pub(in crate::upstream) struct Validators {
    /// For ports of the thread's own.
    upstreams: Vec<Arc<Upstream>>,
    clock: Clock,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Job {
    upstream: Arc<Upstream>,
    question: Question,
    message: Vec<u8>,
    deadline: Instant,
    done: oneshot::Sender<Result<Checked, UpstreamError>>,
    _place: OwnedSemaphorePermit,
}

impl Validators {
    pub(in crate::upstream) fn new(upstreams: &[Arc<Upstream>], clock: &Clock) -> Self {
        Self {
            upstreams: upstreams.to_vec(),
            clock: clock.clone(),
            jobs: Mutex::default(),
            room: Arc::new(Semaphore::new(QUEUE)),
        }
    }

    /// The answer of a reply to `question`, if it is what its zone signed, or its zone provably signs nothing.
    ///
    /// # Errors
    /// [`UpstreamError::Bogus`]; whatever befell the questions for keys, and no room.
    pub(in crate::upstream) async fn validate(
        &self,
        upstream: &Arc<Upstream>,
        question: &Question,
        reply: Reply,
        deadline: Instant,
    ) -> Result<Answer, UpstreamError> {
        let Reply { mut answer, message, .. } = reply;
        let _place = Arc::clone(&self.room).try_acquire_owned().map_err(|_| UpstreamError::Busy)?;
        let (done, outcome) = oneshot::channel();
        let (upstream, question) = (Arc::clone(upstream), question.clone());
        self.jobs()?
            .try_send(Job { upstream, question, message, deadline, done, _place })
            .map_err(|_| UpstreamError::Busy)?;
        // That it was late is our own fault, or that of who asked late.
        let late = || UpstreamError::Hurried(Attempts::default());
        let Checked { ttl, proof } = timeout_at(deadline, outcome).await.map_err(|_| late())?.map_err(|_| late())??;
        for record in answer.records.iter_mut().chain(&mut answer.soa) {
            record.ttl = record.ttl.min(ttl);
        }
        answer.proof = proof.map(Arc::new);
        Ok(answer)
    }

    /// Where jobs are taken. The thread ends when the last sender goes.
    fn jobs(&self) -> Result<mpsc::Sender<Job>, UpstreamError> {
        let mut jobs = self.jobs.lock();
        if let Some(jobs) = jobs.as_ref().filter(|jobs| !jobs.is_closed()) {
            return Ok(jobs.clone());
        }
        let (sender, inbox) = mpsc::channel(QUEUE);
        let (upstreams, clock) = (self.upstreams.clone(), self.clock.clone());
        let runtime = Builder::new_current_thread().enable_all().build();
        let begun = runtime.and_then(|runtime| {
            let run = move || runtime.block_on(serve(inbox, upstreams, clock));
            std::thread::Builder::new().name("dnssec".to_owned()).spawn(run)
        });
        if let Err(error) = begun {
            tracing::error!(%error, "the thread that validates cannot be started; what has to be validated fails");
            return Err(UpstreamError::Busy);
        }
        *jobs = Some(sender.clone());
        Ok(sender)
    }
}

async fn serve(mut jobs: mpsc::Receiver<Job>, upstreams: Vec<Arc<Upstream>>, clock: Clock) {
    let ports = Arc::new(Ports::new(upstreams.iter().flat_map(|upstream| &upstream.servers)));
    let mut askers: HashMap<ViewId, Asker> = HashMap::new();
    while let Some(job) = jobs.recv().await {
        let upstream = &job.upstream;
        let asker = askers.entry(upstream.view).or_insert_with(|| {
            let (ports, keys, inflight) = (Arc::clone(&ports), Arc::clone(&upstream.keys), Arc::new(Inflight::new()));
            Asker { upstream: Arc::clone(upstream), ports, keys, inflight, clock: clock.clone() }
        });
        let asker = asker.clone();
        tokio::spawn(async move {
            let Job { upstream, question, message, deadline, done, _place } = job;
            let Mode::Validate { insecure, anchors } = &upstream.dnssec else { return };
            // Nobody waits for what is late.
            if !done.is_closed() && Instant::now() < deadline {
                let checked =
                    timeout_at(deadline, check(asker, (insecure, anchors), &question, message, deadline)).await;
                let _gone = done.send(checked.unwrap_or_else(|_| Err(UpstreamError::Hurried(Attempts::default()))));
            }
        });
    }
}

/** Receives a snapshot, or one round of a chain, and then the verdict of its source. */
import { setImmediate as yieldToOthers } from 'node:timers/promises'
import { warmUp } from '../criu/warm-up.ts'
import { Fault } from '../fault.ts'
import { digestWords } from '../format/digest.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { LONGEST_RECALLED } from '../format/page-digest.ts'
import type { TargetState } from '../handover/state-machine.ts'
import type { TargetHandover } from '../handover/target.ts'
import type { Report } from '../progress.ts'
import type { IncomingSnapshot } from '../store/snapshots.ts'
import { accepting, unexpected } from '../stream/frames.ts'
import type { ImageSink } from '../stream/image.ts'
import { receiveSnapshot } from '../stream/receive.ts'
import type { Snapshot } from '../stream/summary.ts'
import { defer } from '../stream/wait.ts'
import type { CacheContext, Peer } from './context.ts'
import { linger, refusedFrame } from './graceful-close.ts'

/** What a source may send when its snapshot is sealed. */
const lastFrames = accepting('verdict', 'failed')

/** States in which nothing depends on a verdict any more. */
const settled: readonly TargetState[] = ['owning', 'reviving', 'running', 'dropped']

/**
 * A resumable link notices by itself that nothing comes: it gets this much time before the table of connections closes
 * it, ms.
 */
const RESUME_MARGIN_MS = 1000
/** How long a link stays open after its verdict, so that our answer is read, ms. */
const SETTLED_MS = 1000

/**
 * Receives the snapshot `id` and seals it. If its source hands over a process, waits for the verdict and carries it
 * out. Throws what went wrong.
 */
export async function receive(id: SnapshotId, peer: Peer, context: CacheContext): Promise<void> {
  const { writer, connection } = peer
  const { digest, handover } = await receiveImages(id, peer, context)
  connection.enter('waiting')
  if (handover === undefined) return writer.send({ type: 'sealed', digest })
  await awaitVerdict(handover, digest, peer, context)
}

/** Returns the digest of the snapshot, and its hand-over if the source hands over a process. */
async function receiveImages(
  id: SnapshotId,
  { targetLink, link, connection, reader, writer, memory }: Peer,
  { snapshots, handovers, options, resumable, incomingRounds }: CacheContext,
): Promise<{ digest: bigint; handover: TargetHandover | undefined }> {
  const { report, timeoutMs } = options
  const begun = performance.now()
  handovers.refuseIfOpen(id)
  const incoming = snapshots.receive(id)
  connection.onClose(() => incoming.drop())
  connection.enter('moving', timeoutMs)
  const over = defer<void>()
  let round: number | undefined
  let handsOver: Until | undefined
  let token: Buffer | undefined
  try {
    const snapshot = await receiveSnapshot(reader, warmingUp(incoming), {
      get offer() {
        return incoming.offer
      },
      memory,
      // Images that come meanwhile do not wait for the answer.
      onRecall: (from) => answerRecall(incoming, from, { writer, memory }).catch((error: Error) => link.destroy(error)),
      onAck: (channel, offset) => writer.send({ type: 'ack', channel, offset }),
      onReserved: (offset) => writer.send({ type: 'reserved', offset }),
      onHandOver(until, shown) {
        handsOver = until
        token = shown
        if (token === undefined) return
        targetLink.outlive(token, timeoutMs, memory)
        connection.enter('moving', timeoutMs + RESUME_MARGIN_MS)
        if (incoming.owns) resumable.set(id, targetLink)
      },
      onLayer(layer) {
        incoming.join(layer)
        if (!layer.last) {
          round = layer.under + 1
          incomingRounds.set(id, { link, over: over.promise })
        }
        if (token !== undefined) resumable.set(id, targetLink)
      },
    })
    await incoming.complete()
    const handover = handsOver && handovers.add(id, token, handsOver)
    incoming.seal(handover !== undefined)
    reportSealed(report, id, snapshot, begun, round)
    return { digest: snapshot.digest, handover }
  } finally {
    incoming.drop()
    if (incomingRounds.get(id)?.link === link) incomingRounds.delete(id)
    over.resolve()
  }
}

/**
 * Reports that a snapshot is sealed. `begun`: by performance.now(). `round`: its number in the chain, if it is a round.
 */
export function reportSealed(report: Report, id: SnapshotId, snapshot: Snapshot, begun: number, round?: number): void {
  const { images, bytes } = snapshot
  const ms = performance.now() - begun
  const digest = digestWords(snapshot)
  report({ event: 'sealed', id, images: images.length, bytes, ms, digest, ...(round !== undefined && { round }) })
}

async function awaitVerdict(
  handover: TargetHandover,
  digest: bigint,
  { reader, writer, link }: Peer,
  { handovers }: CacheContext,
): Promise<void> {
  const { id } = handover
  handover.watcher = {
    ready: () => void writer.send({ type: 'ready' }).catch(() => {}),
    refused: (fault: Fault) => void writer.send(refusedFrame(fault)).catch(() => {}),
    // The answer to the verdict goes out first.
    settled: () => void setTimeout(() => link.destroy(), SETTLED_MS).unref(),
  }
  try {
    await writer.send({ type: 'sealed', digest })
    // The frame is on its way before a criu is started, which takes a while.
    await yieldToOthers()
    handovers.restore(id)
    const last = await reader.next(lastFrames).catch((reason: unknown) => {
      // The verdict may have come over another link.
      if (!settled.includes(handover.state)) throw reason
      return undefined
    })
    // Without a verdict the copy stays held.
    if (last === undefined) return
    if (last.type === 'failed') throw new Fault(last.code, `the source gave up: ${last.reason}`)
    if (last.id !== id) throw unexpected(last)
    await writer.send({ type: 'fate', fate: await handovers.decide(id, last.verdict) })
    await linger(link)
  } finally {
    handover.watcher = undefined
    if (!settled.includes(handover.state)) handovers.reportUndecided(id)
  }
}

async function answerRecall(
  { offer }: IncomingSnapshot,
  from: number,
  { writer, memory }: Pick<Peer, 'writer' | 'memory'>,
): Promise<void> {
  if (offer === undefined) return writer.send({ type: 'recalled', offers: false, total: 0, digests: new Uint32Array() })
  // The digests are held twice: as numbers, and as the frame that is made of them.
  const bytes = 2 * LONGEST_RECALLED
  memory.add(bytes)
  try {
    await writer.send({ type: 'recalled', offers: true, ...(await offer.recall(from)) })
  } finally {
    memory.add(-bytes)
  }
}

/**
 * Warms up while memory is reserved: the sender is not ready to send before that either. Throws at once without memory.
 */
function warmingUp(incoming: IncomingSnapshot): ImageSink {
  return {
    open: (name) => incoming.open(name),
    reserve(bytes) {
      const ready = incoming.sink.reserve(bytes)
      return Promise.all([ready, warmUp()]).then(() => ready)
    },
  }
}

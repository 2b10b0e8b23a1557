/**
 * What the cache says and hears on the wire: snapshots come, and their verdicts; clients ask for them.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { warmUp } from '../criu/warm-up.ts'
import { Fault } from '../fault.ts'
import { digestWords } from '../format/digest.ts'
import type { Until } from '../format/enums.ts'
import type { Frame, FrameOf } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
import { LONGEST_RECALLED } from '../format/page-digest.ts'
import { asFault, refusalOf } from '../format/refusal.ts'
import type { TargetState } from '../handover/state-machine.ts'
import type { Account } from '../store/accounting.ts'
import type { IncomingSnapshot } from '../store/snapshots.ts'
import { accepting, type FrameWriter, frameReader, frameWriter, unexpected } from '../stream/frames.ts'
import type { ImageSink } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { metered } from '../stream/metered.ts'
import { receiveSnapshot } from '../stream/receive.ts'
import { type TargetLink, unknownSnapshot } from '../stream/resuming-receiver.ts'
import { defer } from '../stream/wait.ts'
import { holding, holdings, pinHolding, removeHolding } from './admin.ts'
import type { CacheContext, ConnectionPolicy, Conversation } from './context.ts'
import { type Handovers, manualCommand } from './handovers.ts'
import { sendStored } from './send.ts'

/** How a client begins; a verdict and what follows it are its only word. */
const beginnings = accepting('snapshot', 'get', 'handOver', 'verdict', 'resume', 'join')
const localBeginnings = accepting('snapshot', 'get', 'handOver', 'verdict', 'resume', 'list', 'remove', 'pin')
/** After `handOver`, from one that restores. */
const restores = accepting('get')
/** The last word of a source. */
const lastWords = accepting('verdict', 'failed')

/** Answers whoever is at the other end. Reports what fails, and closes the link. */
export async function handleConnection(
  line: TargetLink,
  context: CacheContext,
  { connection, source, trusted = false, joined = false }: ConnectionPolicy,
): Promise<void> {
  const memory = context.peers.open()
  connection.onClose(memory.close)
  const link = metered(line.link, connection.moved)
  const writer = frameWriter(link.outlet)
  const reader = frameReader(link.inlet, { onGot: line.onGot, memory })
  const talk = { line, link, connection, reader, writer, memory }
  let what = link.peer
  /** Why it was closed from outside: what breaks then follows from it. */
  let gaveWay: Fault | undefined
  let { silentFailures: failures } = context
  try {
    await writer.send({ type: 'hello' })
    const frame = await reader.next(trusted ? localBeginnings : beginnings)
    if (frame === undefined) return
    connection.beforeClose((fault) => {
      gaveWay = fault
      return sayRefused(link, writer, fault)
    })
    failures = context.failures
    // Who comes back goes on in the place of its first connection.
    if (frame.type !== 'resume') connection.enter('waiting')
    if (frame.type === 'snapshot') {
      what = `snapshot ${frame.id}`
      await take({ id: frame.id, ...talk }, context)
    } else if (frame.type === 'get') await sendStored(frame, { ...talk, holds: false }, context)
    else if (frame.type === 'handOver') {
      await sendStored(await reader.expect(restores), { ...talk, holds: true }, context)
    } else if (frame.type === 'verdict') {
      if (!trusted) context.handovers.checkToken(frame.id, frame.token)
      await obey(frame, writer, context.handovers)
    } else if (frame.type === 'list' || frame.type === 'remove' || frame.type === 'pin') {
      await writer.send(await stockAnswer(frame, context))
    } else if (frame.type === 'resume') {
      what = `snapshot ${frame.id}`
      const broken = context.incoming.get(frame.id)
      if (broken === undefined) throw unknownSnapshot()
      broken.resume(frame, line)
    } else if (joined) throw unexpected(frame)
    else await context.groups.join(frame, line, source)
  } catch (error) {
    failures.tell(source, what, gaveWay ?? asFault(error))
    if (gaveWay === undefined) await refuse(link, writer, asFault(error)).catch(() => {})
  } finally {
    link.destroy()
    for (const [id, taking] of context.incoming) if (taking === line) context.incoming.delete(id)
  }
}

async function stockAnswer(
  frame: Extract<Frame, { type: 'list' | 'remove' | 'pin' }>,
  context: CacheContext,
): Promise<Frame> {
  if (frame.type === 'remove') {
    await removeHolding(frame.id, context)
    return { type: 'fate', fate: 'dropped' }
  }
  if (frame.type === 'pin') {
    pinHolding(frame.id, frame.pinned, context)
    return { type: 'listed', total: 1, holdings: [holding(frame.id, context)] }
  }
  const all = holdings(context)
  return { type: 'listed', total: all.length, holdings: all }
}

const LINGER_MS = 5000
/** For what is taken and not looked at, whoever sent it. */
const ignored = Buffer.allocUnsafeSlow(64 * 2 ** 10)

/**
 * Tells the peer why, and takes what it has already sent: closing over unread bytes makes TCP reset the link, and the
 * peer would learn of the reset before it reads the reason.
 */
async function refuse(link: Link, writer: FrameWriter, fault: Fault): Promise<void> {
  await linger(link, () => sayRefused(link, writer, fault))
}

async function sayRefused(link: Link, writer: FrameWriter, fault: Fault): Promise<void> {
  await writer.send({ type: 'refused', code: refusalOf(fault), reason: fault.message })
  await link.outlet.finish()
}

/** Says its last word, and takes what still comes. */
async function linger(link: Link, say = (): Promise<void> => link.outlet.finish()): Promise<void> {
  const timer = setTimeout(() => link.destroy(), LINGER_MS)
  try {
    await say()
    while ((await link.inlet.read(ignored)) > 0);
  } catch {
  } finally {
    clearTimeout(timer)
  }
}

async function take(
  { id, reader, writer, line, link, connection, memory }: Conversation & { id: SnapshotId },
  { snapshots, handovers, options, incoming, rounds }: CacheContext,
): Promise<void> {
  const { report } = options
  const begun = performance.now()
  handovers.refuseIfOpen(id)
  const arriving = snapshots.receive(id)
  connection.onClose(() => arriving.drop())
  connection.enter('moving', options.timeoutMs)
  const over = defer<void>()
  let round: number | undefined
  let until: Until | undefined
  let shown: Buffer | undefined
  let digest: bigint
  try {
    const snapshot = await receiveSnapshot(reader, rehearsing(arriving), {
      get offer() {
        return arriving.offer
      },
      memory,
      // Images that come meanwhile do not wait for it.
      onRecall: (from) => recalled(arriving, from, writer, memory).catch((reason: Error) => link.destroy(reason)),
      onAck: (channel, offset) => writer.send({ type: 'ack', channel, offset }),
      onReserved: (offset) => writer.send({ type: 'reserved', offset }),
      onHandOver(far, token) {
        until = far
        shown = token
        if (token === undefined) return
        line.outlive(token, options.timeoutMs, memory)
        connection.enter('moving', options.timeoutMs + LINK_MS)
        if (arriving.owns) incoming.set(id, line)
      },
      onLayer(layer) {
        arriving.join(layer)
        if (!layer.last) {
          round = layer.under + 1
          rounds.set(id, { link, over: over.promise })
        }
        if (shown !== undefined) incoming.set(id, line)
      },
    })
    digest = snapshot.digest
    await arriving.complete()
    if (until !== undefined) handovers.add(id, shown)
    arriving.seal(until !== undefined)
    const ms = performance.now() - begun
    const { images, bytes } = snapshot
    report({
      event: 'sealed',
      id,
      images: images.length,
      bytes,
      ms,
      digest: digestWords(snapshot),
      ...(round !== undefined && { round }),
    })
  } finally {
    arriving.drop()
    if (rounds.get(id)?.link === link) rounds.delete(id)
    over.resolve()
  }
  connection.enter('waiting')
  const arrival = handovers.get(id)
  if (arrival === undefined || until === undefined) return writer.send({ type: 'sealed', digest })
  const watcher = {
    ready: () => void writer.send({ type: 'ready' }).catch(() => {}),
    refused: (fault: Fault) =>
      void writer.send({ type: 'refused', code: refusalOf(fault), reason: fault.message }).catch(() => {}),
    // Its own answer goes out first.
    settled: () => void setTimeout(() => link.destroy(), SETTLED_MS).unref(),
  }
  arrival.watcher = watcher
  try {
    await writer.send({ type: 'sealed', digest })
    // It is on its way before a criu is started, which takes a while.
    await turn()
    handovers.restore(id)
    const last = await reader.next(lastWords).catch((reason: unknown) => {
      // Its verdict may have come over a link of its own.
      if (!settled.includes(arrival.state)) throw reason
      return undefined
    })
    if (last?.type === 'verdict' && last.id !== id) throw unexpected(last)
    await obey(last, writer, handovers)
    if (last !== undefined) await linger(link)
  } finally {
    arrival.watcher = undefined
    if (!settled.includes(arrival.state)) report({ event: 'undecided', id, how: manualCommand(options.directory, id) })
  }
}

async function recalled(
  { offer }: IncomingSnapshot,
  from: number,
  writer: FrameWriter,
  memory: Account,
): Promise<void> {
  const nothing = { offers: false, total: 0, digests: new Uint32Array() }
  // As numbers, and as the frame that is made of them.
  const bytes = offer === undefined ? 0 : 2 * LONGEST_RECALLED
  memory.add(bytes)
  try {
    const answer = offer === undefined ? nothing : { offers: true, ...(await offer.recall(from)) }
    await writer.send({ type: 'recalled', ...answer })
  } finally {
    memory.add(-bytes)
  }
}

/** While it makes memory ready, its sender is not ready to send either. Where there is to be no memory, both throw at once. */
function rehearsing(arriving: IncomingSnapshot): ImageSink {
  return {
    open: (name) => arriving.open(name),
    reserve(bytes) {
      const ready = arriving.sink.reserve(bytes)
      return Promise.all([ready, warmUp()]).then(() => ready)
    },
  }
}

/** A link that outlives its breaks notices by itself that nothing comes: it has its time before it is closed from here. */
const LINK_MS = 1000
/** How long a link stays after its verdict. */
const SETTLED_MS = 1000

/** States in which nothing depends on a verdict any more. */
const settled: readonly TargetState[] = ['owning', 'reviving', 'running', 'dropped']

/** The verdict is the last word of a source; it may come on a link of its own. Without it the copy is held. */
async function obey(
  frame: FrameOf<'verdict' | 'failed'> | undefined,
  writer: FrameWriter,
  handovers: Handovers,
): Promise<void> {
  if (frame === undefined) return
  if (frame.type === 'failed') throw new Fault(frame.code, `the source gave up: ${frame.reason}`)
  await writer.send({ type: 'fate', fate: await handovers.decide(frame.id, frame.verdict) })
}

/**
 * What the cache says and hears on the wire: snapshots come, and their verdicts; clients ask for them.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { digestWords } from '../format/digest.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Frame } from '../format/wire.ts'
import type { Until } from '../format/words.ts'
import type { Arriving } from '../store/shelf.ts'
import { type FrameReader, type FrameWriter, frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSink } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { receiveSnapshot, unexpected } from '../stream/receive.ts'
import { type Line, unknown } from '../stream/resuming-receiver.ts'
import { type Arrivals, byHand } from './arrivals.ts'
import type { House } from './cache.ts'
import { give } from './giving.ts'
import type { TargetState } from './handover.ts'
import { asFault, refusalOf } from './refusal.ts'
import { rehearse } from './rehearsal.ts'
import { holding, holdings, pinHolding, removeHolding } from './stock.ts'
import { defer } from './wait.ts'

/** One conversation. */
export interface Talk {
  line: Line
  link: Link
  reader: FrameReader
  writer: FrameWriter
}

export interface Manners {
  patienceMs?: number
  trusted?: boolean
  joined?: boolean
}

/** Bytes of payload in the first frame: a name. */
const LONGEST_FIRST = 1024
/**
 * Answers whoever is at the other end; `patienceMs`: how long its first frame may take; `trusted`: its
 * verdicts need no token; `joined`: it speaks over several connections already. Reports what fails, and closes the link.
 */
export async function answer(
  line: Line,
  house: House,
  { patienceMs, trusted = false, joined = false }: Manners,
): Promise<void> {
  const { link } = line
  const writer = frameWriter(link.outlet)
  const reader = frameReader(link.inlet, { onGot: line.onGot })
  const talk = { line, link, reader, writer }
  let what = link.peer
  try {
    await writer.send({ type: 'hello' })
    const hangUp = (): void => link.destroy(new Fault('TIMEOUT', 'the client said nothing'))
    const silent = patienceMs === undefined ? undefined : setTimeout(hangUp, patienceMs)
    const frame = await reader.next(LONGEST_FIRST).finally(() => clearTimeout(silent))
    if (frame === undefined) return
    if (frame.type === 'snapshot') {
      what = `snapshot ${frame.id}`
      await take({ id: frame.id, ...talk }, house)
    } else if (frame.type === 'get') await give(frame, { ...talk, holds: false }, house)
    else if (frame.type === 'handOver') {
      const get = await reader.expect()
      if (get.type !== 'get') throw unexpected(get)
      await give(get, { ...talk, holds: true }, house)
    } else if (frame.type === 'verdict') {
      if (!trusted) house.arrivals.believe(frame.id, frame.token)
      await obey(frame, writer, house.arrivals)
    } else if (frame.type === 'list' || frame.type === 'remove' || frame.type === 'pin') {
      if (!trusted) throw new Fault('REFUSED', `a ${frame.type} frame is for the cache's own host`)
      await writer.send(await stockAnswer(frame, house))
    } else if (frame.type === 'resume') {
      what = `snapshot ${frame.id}`
      const broken = house.lines.get(frame.id)
      if (broken === undefined) throw unknown()
      broken.resume(frame, line)
    } else if (frame.type === 'join' && !joined) await house.groups.join(frame, line)
    else throw unexpected(frame)
  } catch (error) {
    const fault = asFault(error)
    house.options.report({ event: 'failed', what, fault })
    await refuse(link, writer, fault).catch(() => {})
  } finally {
    link.destroy()
    for (const [id, taking] of house.lines) if (taking === line) house.lines.delete(id)
  }
}

async function stockAnswer(frame: Extract<Frame, { type: 'list' | 'remove' | 'pin' }>, house: House): Promise<Frame> {
  if (frame.type === 'remove') {
    await removeHolding(frame.id, house)
    return { type: 'fate', fate: 'dropped' }
  }
  if (frame.type === 'pin') {
    pinHolding(frame.id, frame.pinned, house)
    return { type: 'listed', total: 1, holdings: [holding(frame.id, house)] }
  }
  const all = holdings(house)
  return { type: 'listed', total: all.length, holdings: all }
}

const LINGER_MS = 5000

/**
 * Tells the peer why, and takes what it has already sent: closing over unread bytes makes TCP reset the link, and the
 * peer would learn of the reset before it reads the reason.
 */
async function refuse(link: Link, writer: FrameWriter, fault: Fault): Promise<void> {
  await linger(link, () => writer.send({ type: 'refused', code: refusalOf(fault), reason: fault.message }))
}

/** Says its last word, and takes what still comes. */
async function linger(link: Link, say = async (): Promise<void> => {}): Promise<void> {
  const timer = setTimeout(() => link.destroy(), LINGER_MS)
  try {
    await say()
    await link.outlet.finish()
    const scratch = Buffer.allocUnsafe(64 * 2 ** 10)
    while (await link.inlet.fill(scratch));
  } catch {
  } finally {
    clearTimeout(timer)
  }
}

async function take(
  { id, reader, writer, line, link }: Talk & { id: SnapshotId },
  { shelf, arrivals, options, lines, rounds }: House,
): Promise<void> {
  const { report } = options
  const begun = performance.now()
  arrivals.refuseIfOpen(id)
  const arriving = shelf.receive(id)
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
      // Images that come meanwhile do not wait for it.
      onRecall: (from) => recalled(arriving, from, writer).catch((reason: Error) => link.destroy(reason)),
      onAck: (channel, offset) => writer.send({ type: 'ack', channel, offset }),
      onReserved: (offset) => writer.send({ type: 'reserved', offset }),
      onHandOver(far, token) {
        until = far
        shown = token
        if (token === undefined) return
        line.outlive(token, options.timeoutMs)
        if (arriving.owns) lines.set(id, line)
      },
      onLayer(layer) {
        arriving.join(layer)
        if (!layer.last) {
          round = layer.under + 1
          rounds.set(id, { link, over: over.promise })
        }
        if (shown !== undefined) lines.set(id, line)
      },
    })
    digest = snapshot.digest
    await arriving.complete()
    if (until !== undefined) arrivals.add(id, shown)
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
  const arrival = arrivals.get(id)
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
    arrivals.restore(id)
    const last = await reader.next().catch((reason: unknown) => {
      // Its verdict may have come over a link of its own.
      if (!settled.includes(arrival.state)) throw reason
      return undefined
    })
    if (last?.type === 'verdict' && last.id !== id) throw unexpected(last)
    await obey(last, writer, arrivals)
    if (last !== undefined) await linger(link)
  } finally {
    arrival.watcher = undefined
    if (!settled.includes(arrival.state)) report({ event: 'undecided', id, how: byHand(options.directory, id) })
  }
}

async function recalled({ offer }: Arriving, from: number, writer: FrameWriter): Promise<void> {
  const nothing = { offers: false, total: 0, digests: new Uint32Array() }
  await writer.send({
    type: 'recalled',
    ...(offer === undefined ? nothing : { offers: true, ...(await offer.recall(from)) }),
  })
}

/** While it makes memory ready, its sender is not ready to send either. Where there is to be no memory, both throw at once. */
function rehearsing(arriving: Arriving): ImageSink {
  return {
    open: arriving.open,
    reserve(bytes) {
      const ready = arriving.sink.reserve(bytes)
      return Promise.all([ready, rehearse()]).then(() => ready)
    },
  }
}

/** How long a link stays after its verdict. */
const SETTLED_MS = 1000

/** States in which nothing depends on a verdict any more. */
const settled: readonly TargetState[] = ['owning', 'reviving', 'running', 'dropped']

/** The verdict is the last word of a source; it may come on a link of its own. Without it the copy is held. */
async function obey(frame: Frame | undefined, writer: FrameWriter, arrivals: Arrivals): Promise<void> {
  if (frame === undefined) return
  if (frame.type === 'failed') throw new Fault(frame.code, `the source gave up: ${frame.reason}`)
  if (frame.type !== 'verdict') throw unexpected(frame)
  await writer.send({ type: 'fate', fate: await arrivals.decide(frame.id, frame.verdict) })
}

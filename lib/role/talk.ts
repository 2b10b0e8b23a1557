/**
 * What the cache says and hears on the wire: snapshots come, and their verdicts; clients ask for them.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { digestWords } from '../format/digest.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import { type Frame, MOST_DATA } from '../format/wire.ts'
import type { Until } from '../format/words.ts'
import type { Piece, StoredImage } from '../store/memory.ts'
import type { Arriving } from '../store/shelf.ts'
import { type FrameReader, type FrameWriter, frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSink, ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { receiveSnapshot, unexpected } from '../stream/receive.ts'
import { type Line, unknown } from '../stream/resuming-receiver.ts'
import { sendSnapshot } from '../stream/send.ts'
import { type Arrivals, byHand, type Lead, type Remote } from './arrivals.ts'
import type { House } from './cache.ts'
import type { TargetState } from './handover.ts'
import { asFault, refusalOf } from './refusal.ts'
import { rehearse } from './rehearsal.ts'
import { holdings, removeHolding } from './stock.ts'

/** One conversation. */
interface Talk {
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
    } else if (frame.type === 'list' || frame.type === 'remove') {
      if (!trusted) throw new Fault('REFUSED', `a ${frame.type} frame is for the cache's own host`)
      await writer.send(stockAnswer(frame, house))
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

function stockAnswer(frame: Extract<Frame, { type: 'list' | 'remove' }>, house: House): Frame {
  if (frame.type === 'remove') {
    removeHolding(frame.id, house)
    return { type: 'fate', fate: 'dropped' }
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
  { shelf, arrivals, options, lines }: House,
): Promise<void> {
  const { report } = options
  const begun = performance.now()
  arrivals.refuseIfOpen(id)
  const arriving = shelf.receive(id)
  let round: number | undefined
  let until: Until | undefined
  let shown: Buffer | undefined
  let digest: bigint
  try {
    const snapshot = await receiveSnapshot(reader, rehearsing(arriving), {
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
        if (!layer.last) round = layer.under + 1
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

/** Larger windows are sent as they are. */
const LARGEST_GATHERED = 2 ** 16

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

async function give(
  { id, timeoutMs }: { id: SnapshotId | undefined; timeoutMs: number },
  { reader, writer, holds }: Talk & { holds: boolean },
  { shelf, arrivals, options: { report, signal } }: House,
): Promise<void> {
  arrivals.refuseIfRunning(id)
  const first = reader.next()
  first.catch(() => {})
  const left = new AbortController()
  const leave = (): void => left.abort(new Fault('LINK', 'the client left before its snapshot was here'))
  first.then(leave, leave)
  const snapshot = await shelf.find(id, timeoutMs, left.signal, holds)
  const done = snapshot.use()
  let remote: Remote | undefined
  let lead: Lead | undefined
  try {
    if (holds) remote = arrivals.remote(snapshot.id, writer)
    else lead = arrivals.lead(snapshot.id, undefined, undefined)
    const begun = performance.now()
    const until = remote === undefined ? undefined : 'running'
    const reserve = [...snapshot.images.values()].reduce((sum, { size }) => sum + size, 0)
    const sent = await sendSnapshot(writer, snapshot.id, storedSource(snapshot.images), { signal, until, reserve })
    const reply = await first
    if (reply?.type !== 'sealed' || reply.digest !== sent.digest) {
      throw new Fault('LINK', 'the client did not confirm the snapshot')
    }
    const ms = performance.now() - begun
    report({ event: 'served', id: snapshot.id, images: sent.images.length, bytes: sent.bytes, ms })
    await remote?.follow(reader)
  } catch (error) {
    remote?.lost(error as Fault)
    throw error
  } finally {
    done()
    await lead?.finish()
  }
}

/** Windows of a size that is good to send; what was put together is overwritten when the next one is asked for. */
function* gathered(pieces: Iterable<Piece>): Generator<Uint8Array> {
  let room: Buffer | undefined
  let filled = 0
  for (const { window } of pieces) {
    if (filled > 0 && filled + window.length > MOST_DATA && room !== undefined) {
      yield room.subarray(0, filled)
      filled = 0
    }
    if (window.length > LARGEST_GATHERED) {
      if (filled > 0 && room !== undefined) yield room.subarray(0, filled)
      filled = 0
      yield window
      continue
    }
    room ??= Buffer.allocUnsafeSlow(MOST_DATA)
    room.set(window, filled)
    filled += window.length
  }
  if (filled > 0 && room !== undefined) yield room.subarray(0, filled)
}

/** Stored images as a source, so that a snapshot can be sent on. */
function storedSource(images: ReadonlyMap<ImageName, StoredImage>): ImageSource {
  return {
    images: (async function* (): AsyncGenerator<OpenImage> {
      for (const { name, pieces } of images.values()) {
        yield { name, body: { kind: 'pieces', pieces: gathered(pieces) } }
      }
    })(),
    destroy() {},
  }
}

/**
 * Sending a snapshot: an image source to an outlet.
 *
 * CRIU holds several images open at a time and blocks on whichever pipe is full, so every open image has its own loop
 * and a frame is the unit in which they take turns on the link. The end of an image carries its digest, the end of the
 * snapshot the list of all. A source that ends without inventory.img is a dump that failed, however tidy it looks: the
 * receiver is told so, and the caller gets `FAILED_DUMP`.
 */
import { Fault } from '../fault.ts'
import { digest } from '../format/digest.ts'
import type { Until } from '../format/enums.ts'
import { encodeImageList, type ImageEntry, MOST_IMAGES } from '../format/image-list.ts'
import { INVENTORY, type SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { encodeFrame, type Layer, MOST_DATA } from '../format/wire.ts'
import { closeFd } from '../kernel/readiness.ts'
import { openPacker } from './compress.ts'
import type { CriuTimeout } from './criu-timeout.ts'
import type { DedupSender } from './dedup-send.ts'
import type { FrameWriter } from './frames.ts'
import type { ImageSource } from './image.ts'
import { limited } from './rate-limit.ts'
import { semaphore } from './semaphore.ts'
import { type Sender, sendImage } from './send-image.ts'
import type { Tuning } from './tuning.ts'

export interface Snapshot {
  images: ImageEntry[]
  /** Of the list of images. */
  digest: bigint
  /** Bytes in all images. */
  bytes: number
}

/**
 * Describes a complete set of images. Throws `FAILED_DUMP` where inventory.img is missing, which a `round` of a chain
 * does not need.
 */
export function summarize(images: ImageEntry[], round = false): Snapshot {
  if (!round && !images.some((image) => image.name === INVENTORY)) throw unfinished()
  const list = digest()
  list.update(encodeImageList(images))
  return { images, digest: list.finish(), bytes: images.reduce((sum, image) => sum + image.size, 0) }
}

function unfinished(): Fault {
  return new Fault('FAILED_DUMP', `the dump did not finish: ${INVENTORY} is missing`, {
    hint: "the process was not moved; see the dump's own log",
  })
}

function encodeEnd({ images, digest }: Snapshot): Buffer {
  return encodeFrame({ type: 'snapshotEnd', images, digest })
}

export interface SendOptions extends Tuning {
  /** It is a hand-over: the receiver is told how far we wait, and that a verdict follows. */
  until?: Until | undefined
  /** The receiver has been told the id and `until` already (see resumable.ts). */
  greeted?: boolean
  /** It is a part of a chain: a round, which needs no inventory.img, or the last. */
  layer?: Layer | undefined
  /** About how many bytes will come: the receiver is told before the first image. */
  reserve?: number | undefined
  /** What the receiver is asked for, and what need not be sent. */
  known?: DedupSender | undefined
  /** The tasks stay frozen until the other end has it all: their pages may be passed on by reference. */
  frozen?: boolean
  /** Called for progress. */
  onBytes?: (bytes: number) => void
  /** Is told while CRIU is waited for and when it has said something, and closed when it has said all. */
  silence?: CriuTimeout | undefined
  /** Called when inventory.img and every image before it are out of CRIU's pipes: it may let go of the tasks.
   * `endBytes` is the size of the end frame that is still to come. If it throws, the snapshot fails. */
  onDrained?: (endBytes: number) => Promise<void>
  /** Awaited before the end frame: the last chance to say that the dump failed after all. */
  confirm?: (images: number) => Promise<void>
  /** Called as soon as it has failed: what is under way on the link may take longer to end. */
  onFail?: (reason: Error) => void
  /** Stops everything; its reason is thrown. */
  signal?: AbortSignal
}

/**
 * Images that are under way on the link at a time. CRIU opens hundreds when a tree has many deleted files; the others
 * wait for their turn, read but not sent. A receiver need not take more (docs/protocol/wire.md, Limits).
 */
const MOST_UNDER_WAY = 32

/** Sends all images of `source`. Returns what the end frame said. */
export async function sendSnapshot(
  link: FrameWriter,
  id: SnapshotId,
  source: ImageSource,
  {
    until,
    greeted = false,
    layer,
    reserve,
    unchecked = false,
    frozen = false,
    known,
    compress,
    limit,
    onBytes: progress = () => {},
    silence,
    onDrained,
    confirm = async () => {},
    onFail,
    signal,
  }: SendOptions = {},
): Promise<Snapshot> {
  const stop = new AbortController()
  const round = layer?.last === false
  const fail = (reason: unknown): void => {
    if (stop.signal.aborted) return
    stop.abort(reason)
    onFail?.(reason as Error)
    source.destroy(reason as Error)
    for (const reader of sender.readers) reader.interrupt(reason as Error)
  }
  const outside = (): void => fail(signal?.reason)
  signal?.addEventListener('abort', outside)
  const entries: (ImageEntry | undefined)[] = []
  const most = wholePages(limit?.most ?? MOST_DATA)
  const heeded = silence === undefined ? link : heedful(link, silence)
  const within = limit === undefined ? heeded : limited(heeded, limit)
  const packing = compress || known ? openPacker(compress, within, most, known) : undefined
  const writer = packing?.writer ?? within
  const onBytes = (bytes: number): void => {
    silence?.heard()
    progress(bytes)
  }
  silence?.follow(source.news)
  const sender: Sender = {
    writer,
    most,
    packing,
    onBytes,
    checked: !unchecked,
    passes: unchecked && frozen,
    stop: stop.signal,
    readers: new Set(),
    turns: semaphore(MOST_UNDER_WAY),
    entries,
  }
  const names = new Set<string>()
  const running = new Set<Promise<void>>()
  const track = (sent: Promise<void>): Promise<void> => {
    const task: Promise<void> = sent.catch(fail).then(() => ended(task))
    running.add(task)
    return task
  }
  const ended = async (task: Promise<void>): Promise<void> => {
    running.delete(task)
    if (running.size > 0 || !names.has(INVENTORY) || stop.signal.aborted) return
    // From here on CRIU may kill the tasks: a signal comes too late.
    signal?.removeEventListener('abort', outside)
    await onDrained?.(encodeEnd(summarize(entries as ImageEntry[])).length).catch(fail)
  }
  try {
    signal?.throwIfAborted()
    // Not awaited: CRIU is read from even while the link is not there.
    if (!greeted) writer.send({ type: 'snapshot', id }).catch(fail)
    if (!greeted && until !== undefined) writer.send({ type: 'handOver', until }).catch(fail)
    if (layer !== undefined) writer.send({ type: 'layer', ...layer }).catch(fail)
    if (unchecked) writer.send({ type: 'unchecked' }).catch(fail)
    if (reserve !== undefined) writer.send({ type: 'reserve', offset: reserve }).catch(fail)
    known?.ask(writer)
    for await (const image of source.images) {
      if (names.has(image.name) || names.size >= MOST_IMAGES) {
        if (image.body.kind === 'pipe') closeFd(image.body.fd)
        throw new Fault('CRIU_PROTOCOL', `image ${image.name} is opened twice, or is one too many`)
      }
      names.add(image.name)
      silence?.heard()
      const done = track(sendImage(sender, image))
      // CRIU holds several pipes open and needs them all read; what merely lies there goes out in order.
      if (image.body.kind === 'pieces' && !image.body.meanwhile) await done
    }
    stop.signal.throwIfAborted()
    // The link may not take the rest for long.
    if (!round && !names.has(INVENTORY)) throw unfinished()
    await Promise.all(running)
    silence?.close()
    stop.signal.throwIfAborted()
    const snapshot = summarize(entries as ImageEntry[], round)
    await confirm(entries.length)
    await writer.exclusive((outlet) => outlet.send(encodeEnd(snapshot)))
    return snapshot
  } catch (error) {
    fail(error)
    await Promise.all(running)
    const { reason } = stop.signal
    if (reason instanceof Fault && reason.code !== 'LINK') await sayFailed(writer, reason)
    throw reason
  } finally {
    signal?.removeEventListener('abort', outside)
    silence?.close()
    packing?.close()
  }
}

/** The same writer: who waits for it does not wait for CRIU. */
function heedful({ inPlace, send, exclusive }: FrameWriter, silence: CriuTimeout): FrameWriter {
  return {
    inPlace,
    send: (frame) => silence.during(send(frame)),
    exclusive: (turn) => silence.during(exclusive(turn)),
  }
}

function wholePages(bytes: number): number {
  return bytes - (bytes % PAGE_BYTES)
}

/** The receiver learns the reason if the link still carries it; if not, the missing end tells it enough. */
async function sayFailed(writer: FrameWriter, fault: Fault): Promise<void> {
  const code = fault.code === 'ABORTED' || fault.code === 'TIMEOUT' ? fault.code : 'FAILED_DUMP'
  await writer.send({ type: 'failed', code, reason: fault.message }).catch(() => {})
}

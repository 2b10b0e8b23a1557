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
import { INVENTORY, type SnapshotId } from '../format/names.ts'
import { encodeFrame, encodeList, type ImageEntry, MOST_DATA, MOST_IMAGES } from '../format/wire.ts'
import type { Fd } from '../kernel/fd.ts'
import { closeFd, interrupt } from '../kernel/readiness.ts'
import type { FrameWriter } from './frames.ts'
import type { ImageBody, ImageSource, OpenImage } from './image.ts'
import { pipeReader } from './pipe-reader.ts'

export interface Snapshot {
  images: ImageEntry[]
  /** Of the list of images. */
  digest: bigint
  /** Bytes in all images. */
  bytes: number
}

/** Describes a complete set of images. Throws `FAILED_DUMP` where inventory.img is missing. */
export function summarize(images: ImageEntry[]): Snapshot {
  if (!images.some((image) => image.name === INVENTORY)) {
    throw new Fault('FAILED_DUMP', `the dump did not finish: ${INVENTORY} is missing`, {
      hint: "the process was not moved; see the dump's own log",
    })
  }
  const list = digest()
  list.update(encodeList(images))
  return { images, digest: list.finish(), bytes: images.reduce((sum, image) => sum + image.size, 0) }
}

export interface SendOptions {
  /** Called for progress. */
  onBytes?: (bytes: number) => void
  /** Called when inventory.img and every image before it are out of CRIU's pipes: it may let go of the tasks. */
  onDrained?: () => void
  /** Awaited before the end frame: the last chance to say that the dump failed after all. */
  confirm?: () => Promise<void>
  /** Stops everything; its reason is thrown. */
  signal?: AbortSignal
}

/** Sends all images of `source`. Returns what the end frame said. */
export async function sendSnapshot(
  writer: FrameWriter,
  id: SnapshotId,
  source: ImageSource,
  { onBytes = () => {}, onDrained = () => {}, confirm = async () => {}, signal }: SendOptions = {},
): Promise<Snapshot> {
  const stop = new AbortController()
  const fail = (reason: unknown): void => {
    if (stop.signal.aborted) return
    stop.abort(reason)
    source.destroy(reason as Error)
    for (const pipe of sender.pipes) interrupt(pipe, reason as Error)
  }
  const outside = (): void => fail(signal?.reason)
  signal?.addEventListener('abort', outside)
  const sender = { writer, onBytes, stop: stop.signal, pipes: new Set<Fd>() }
  const names = new Set<string>()
  const entries: (ImageEntry | undefined)[] = []
  const running: Promise<void>[] = []
  try {
    signal?.throwIfAborted()
    await writer.send({ type: 'snapshot', id })
    for await (const image of source.images) {
      const channel = entries.push(undefined)
      if (names.has(image.name) || channel > MOST_IMAGES) {
        if (image.body.kind === 'pipe') closeFd(image.body.fd)
        throw new Fault('CRIU_PROTOCOL', `image ${image.name} is opened twice, or is one too many`)
      }
      names.add(image.name)
      const sent = sendImage(sender, channel, image).then((entry) => {
        entries[channel - 1] = entry
        if (names.has(INVENTORY) && entries.every((one) => one !== undefined)) onDrained()
      })
      running.push(sent.catch(fail))
      // CRIU holds several pipes open and needs them all read; what merely lies there goes out in order.
      if (image.body.kind === 'pieces') await running.at(-1)
    }
    await Promise.all(running)
    stop.signal.throwIfAborted()
    const snapshot = summarize(entries as ImageEntry[])
    await confirm()
    await writer.send({ type: 'snapshotEnd', images: snapshot.images, digest: snapshot.digest })
    return snapshot
  } catch (error) {
    fail(error)
    await Promise.all(running)
    const { reason } = stop.signal
    if (reason instanceof Fault && reason.code !== 'LINK') await sayFailed(writer, reason)
    throw reason
  } finally {
    signal?.removeEventListener('abort', outside)
  }
}

interface Sender {
  writer: FrameWriter
  onBytes: (bytes: number) => void
  stop: AbortSignal
  /** Pipes that are read at this moment. */
  pipes: Set<Fd>
}

/** The receiver learns the reason if the link still carries it; if not, the missing end tells it enough. */
async function sayFailed(writer: FrameWriter, fault: Fault): Promise<void> {
  const code = fault.code === 'ABORTED' || fault.code === 'TIMEOUT' ? fault.code : 'FAILED_DUMP'
  await writer.send({ type: 'failed', code, reason: fault.message }).catch(() => {})
}

async function sendImage(sender: Sender, channel: number, { name, body }: OpenImage): Promise<ImageEntry> {
  const { writer, onBytes } = sender
  const sum = digest()
  let size = 0
  const pass = (bytes: Uint8Array): Buffer => {
    sum.update(bytes)
    const header = encodeFrame({ type: 'data', channel, offset: size, length: bytes.length })
    size += bytes.length
    onBytes(bytes.length)
    return header
  }
  try {
    await writer.send({ type: 'image', channel, name })
    if (body.kind === 'pipe') {
      sender.pipes.add(body.fd)
      await sendPipe(sender, body.fd, pass)
    } else await sendPieces(sender, body.pieces, pass)
    const entry = { name, size, digest: sum.finish() }
    await writer.send({ type: 'imageEnd', channel, size: entry.size, digest: entry.digest })
    return entry
  } finally {
    if (body.kind === 'pipe') {
      sender.pipes.delete(body.fd)
      closeFd(body.fd)
    }
  }
}

type Pass = (bytes: Uint8Array) => Buffer

async function sendPipe({ writer, stop }: Sender, pipe: Fd, pass: Pass): Promise<void> {
  const reader = pipeReader(pipe, MOST_DATA)
  for (;;) {
    stop.throwIfAborted()
    const bytes = await reader.next()
    if (bytes.length === 0) return
    await reader.whileSending(sendData(writer, pass(bytes), bytes))
  }
}

function sendData(writer: FrameWriter, header: Buffer, bytes: Uint8Array): Promise<void> {
  return writer.exclusive(async (outlet) => {
    await outlet.send(header, true)
    await outlet.send(bytes)
  })
}

async function sendPieces(
  { writer, stop }: Sender,
  pieces: Extract<ImageBody, { kind: 'pieces' }>['pieces'],
  pass: Pass,
): Promise<void> {
  for await (const piece of pieces) {
    for (let at = 0; at < piece.length; at += MOST_DATA) {
      stop.throwIfAborted()
      const bytes = piece.subarray(at, at + MOST_DATA)
      await sendData(writer, pass(bytes), bytes)
    }
  }
}

/** Sending one image: what is in a pipe or lies in memory, as frames, in turn with the other images that are open. */
import { digest, NO_DIGEST } from '../format/digest.ts'
import type { ImageEntry } from '../format/image-list.ts'
import type { ImageName } from '../format/names.ts'
import { pagesPattern } from '../format/pagemap.ts'
import { encodeFrame, HEADER_BYTES } from '../format/wire.ts'
import type { Packer } from './compress.ts'
import type { FrameWriter } from './frames.ts'
import type { ImageBody, OpenImage } from './image.ts'
import type { Filled } from './link.ts'
import { type PipeReader, pipeReader } from './pipe-reader.ts'
import type { Semaphore } from './semaphore.ts'

/** What the images of one snapshot share. */
export interface Sender {
  writer: FrameWriter
  /** Bytes in a frame. */
  most: number
  packing: Packer | undefined
  onBytes: (bytes: number) => void
  checked: boolean
  /** By reference, where the link can. */
  passes: boolean
  stop: AbortSignal
  /** Of the pipes that are read at this moment. */
  readers: Set<PipeReader>
  turns: Semaphore
  /** By channel; a channel gets its number when it is announced. */
  entries: (ImageEntry | undefined)[]
}

/** Sends an image from its name to its end, and notes what it was. */
export async function sendImage(sender: Sender, { name, body }: OpenImage): Promise<void> {
  const reader = body.kind === 'pipe' ? pipeReader(body.fd, sender.most, body.begun) : undefined
  if (reader !== undefined) sender.readers.add(reader)
  try {
    await (reader?.whileSending(sender.turns.take()) ?? sender.turns.take())
    try {
      await sendTurn(sender, name, body, reader)
    } finally {
      sender.turns.give()
    }
  } finally {
    if (reader !== undefined) sender.readers.delete(reader)
    reader?.close()
  }
}

async function sendTurn(
  { writer, most, packing, onBytes, checked, passes, stop, entries }: Sender,
  name: ImageName,
  body: ImageBody,
  reader: PipeReader | undefined,
): Promise<void> {
  stop.throwIfAborted()
  const channel = entries.push(undefined)
  const sum = checked ? digest() : NO_DIGEST
  let size = 0
  /** Returns where they belong. */
  const count = (bytes: number): number => {
    size += bytes
    packing?.taken(bytes)
    onBytes(bytes)
    return size - bytes
  }
  const add = (bytes: Uint8Array): number => {
    sum.update(bytes)
    return count(bytes.length)
  }
  const send = (bytes: Uint8Array): Promise<void> => {
    stop.throwIfAborted()
    const header = encodeFrame({ type: 'data', channel, offset: add(bytes), length: bytes.length })
    return sendData(writer, header, bytes)
  }
  /** From CRIU's pipe straight to where the link keeps what it sends. */
  const fill = (room: Uint8Array): Filled | undefined => {
    const bytes = (reader as PipeReader).take(room)
    if (bytes === 0) return undefined
    const offset = add(room.subarray(0, bytes))
    return { head: encodeFrame({ type: 'data', channel, offset, length: bytes }), bytes }
  }
  const head = (length: number): Buffer => encodeFrame({ type: 'data', channel, offset: count(length), length })
  const announced = writer.send({ type: 'image', channel, name })
  await (reader?.whileSending(announced) ?? announced)
  const pass = (from: PipeReader): Promise<void> => {
    if (!writer.inPlace) return passOn(from, send)
    return passes ? passByReference(from, writer, most, head, fill) : passInPlace(from, writer, most, fill)
  }
  const image = { channel, pages: pagesPattern.test(name), size: () => size, add, send, pass, stop }
  if (reader !== undefined && packing !== undefined) await packing.sendPipe(reader, image)
  else if (reader !== undefined && writer.inPlace) await sendInPlace(reader, stop, () => pass(reader))
  else if (reader !== undefined) await sendPipe(reader, stop, send)
  else if (body.kind === 'pieces') {
    await sendPieces(body.pieces, most, packing === undefined ? send : (bytes) => packing.sendPiece(bytes, image))
  }
  const entry = { name, size, digest: sum.finish() }
  await writer.send({ type: 'imageEnd', channel, size: entry.size, digest: entry.digest })
  entries[channel - 1] = entry
}

type Pieces = Extract<ImageBody, { kind: 'pieces' }>['pieces']
type Send = (bytes: Uint8Array) => Promise<void>

async function sendPipe(reader: PipeReader, stop: AbortSignal, send: Send): Promise<void> {
  for (;;) {
    stop.throwIfAborted()
    const bytes = await reader.next()
    if (bytes.length === 0) return
    await reader.whileSending(send(bytes))
  }
}

async function sendInPlace(reader: PipeReader, stop: AbortSignal, pass: () => Promise<void>): Promise<void> {
  while (await reader.ready()) {
    stop.throwIfAborted()
    await pass()
  }
}

/** What is in CRIU's pipe now. */
async function passOn(reader: PipeReader, send: Send): Promise<void> {
  const bytes = await reader.next()
  if (bytes.length > 0) await reader.whileSending(send(bytes))
}

async function passInPlace(
  reader: PipeReader,
  writer: FrameWriter,
  most: number,
  fill: (room: Uint8Array) => Filled | undefined,
): Promise<void> {
  await reader.whileSending(writer.exclusive(async (outlet) => outlet.fillInPlace?.(HEADER_BYTES, most, fill)))
}

/** Pages by reference, small things copied. */
async function passByReference(
  reader: PipeReader,
  writer: FrameWriter,
  most: number,
  head: (bytes: number) => Buffer,
  fill: (room: Uint8Array) => Filled | undefined,
): Promise<void> {
  const passed = await writer.exclusive(async (outlet) => {
    const pipe = reader.untouched
    return pipe !== undefined && ((await outlet.passOn?.(pipe, most, head)) ?? 0) > 0
  })
  if (!passed) await passInPlace(reader, writer, most, fill)
}

async function sendPieces(pieces: Pieces, most: number, send: Send): Promise<void> {
  for await (const piece of pieces) {
    for (let at = 0; at < piece.length; at += most) await send(piece.subarray(at, at + most))
  }
}

function sendData(writer: FrameWriter, header: Buffer, bytes: Uint8Array): Promise<void> {
  return writer.exclusive(async (outlet) => {
    await outlet.send(header, true)
    await outlet.send(bytes)
  })
}

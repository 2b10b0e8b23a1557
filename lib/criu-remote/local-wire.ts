/**
 * How a criu with `--remote` (trees between 2017 and June 2020) talks to us on its own host: what the proxy's and the
 * cache's end have in common. docs/protocol/sockets.md describes the protocol.
 *
 * Every image is a connection of its own, whose first message says what it is for. What follows depends on the client's
 * age. Until May 2020 the bytes of an image are on the socket itself; since then they are in a pipe that the client
 * hands over. No message tells which of the two it is. For a client that writes, its first byte tells: it comes with a
 * descriptor or without. A client that reads hands over its pipe at once, or says nothing: then it gets the bytes on
 * the socket after a while. If a pipe comes all the same the image begins anew there, for such a client never reads
 * from the socket.
 *
 * The snapshot ids of criu (its `-D`) may be any strings, and ours are names. So the ids of a dump and of the rounds
 * before it travel with the dump as one more image, which no criu asks for by its name.
 */
import { fillPipe, piecesFor, type Served } from '../criu/serve.ts'
import { Fault } from '../fault.ts'
import { localImageEntry, localImageReplyEntry } from '../format/criu-messages.ts'
import { type ImageName, imageName } from '../format/names.ts'
import { type Fd, isPipeEnd, type PipeEnd } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { writeAll } from '../kernel/transfer.ts'
import { receiveWithFds, shutDown } from '../kernel/unix.ts'
import type { StoredImage } from '../store/stored-image.ts'
import { sleep } from '../stream/wait.ts'
import {
  decode,
  decodeIds,
  decodeSnapshotId,
  ENOENT,
  encode,
  encodeIds,
  MessageDecoder,
  MOST_IDS,
  protocolFault,
  type RemoteRequest,
  requestOf,
} from './messages.ts'

/** The sockets' names in the directory where criu looks for them: criu/include/img-remote.h. */
export const DUMP_SOCKET = 'img-proxy.sock'
export const RESTORE_SOCKET = 'img-cache.sock'

/** The image with the snapshot ids of a dump and of the rounds before it, the oldest first. */
export const IDS = imageName('snapshot-ids')

/** How long a client that has connected may take for its first message. */
const FIRST_MESSAGE_MS = 10_000

/** What the client wants; undefined if it closes without a message. Throws `CRIU_PROTOCOL`, `NAME`, `TIMEOUT`. */
export async function readRequest(socket: Fd): Promise<RemoteRequest | undefined> {
  const body = await inTime(readMessage(socket))
  return body === undefined ? undefined : requestOf(decode(localImageEntry, body))
}

/** Waits for something that a client has ready when it connects. Throws `TIMEOUT`. */
async function inTime<Message>(reading: Promise<Message>): Promise<Message> {
  const over = new AbortController()
  const late = sleep(FIRST_MESSAGE_MS, over.signal, false).then(() => {
    throw new Fault('TIMEOUT', 'a client of criu --remote said nothing')
  })
  return Promise.race([reading, late]).finally(() => over.abort())
}

/** Reads one message and nothing behind it. Returns its body; undefined at the end. Throws `CRIU_PROTOCOL`. */
async function readMessage(socket: Fd): Promise<Buffer | undefined> {
  const decoder = new MessageDecoder()
  for (;;) {
    const part = Buffer.alloc(Math.min(decoder.wanted, 2 ** 10))
    const { bytes, fds } = await receiveWithFds(socket, part)
    for (const stray of fds) closeFd(stray)
    if (fds.length > 0) throw protocolFault('a descriptor in the middle of a message')
    if (bytes === 0) return void decoder.end()
    const { body } = decoder.push(part.subarray(0, bytes))
    if (body !== undefined) return body
  }
}

/** Reads the snapshot ids that a client pushes, to the end of the connection. Throws `CRIU_PROTOCOL`, `TIMEOUT`. */
export function readIds(socket: Fd): Promise<string[]> {
  return inTime(readAllIds(socket))
}

async function readAllIds(socket: Fd): Promise<string[]> {
  const ids: string[] = []
  for (;;) {
    const body = await readMessage(socket)
    if (body === undefined) return ids
    if (ids.length === MOST_IDS) throw protocolFault(`more than ${MOST_IDS} snapshot ids`)
    ids.push(decodeSnapshotId(body))
  }
}

/** The snapshot ids in the image `IDS`, which any sender may have made: none if it is missing or damaged. */
export function idsOf(images: ReadonlyMap<ImageName, StoredImage>): string[] {
  const windows = [...(images.get(IDS)?.pieces ?? [])].map(({ window }) => window)
  try {
    const ids = decodeIds(windows, MOST_IDS)
    return ids.length > MOST_IDS ? [] : ids
  } catch (error) {
    if (error instanceof Fault) return []
    throw error
  }
}

/**
 * Finds out where a client writes its image. `fd`: a pipe, or the client's socket, which the caller reads to its end
 * and closes; `begun`: bytes that were read from it already. Closes the socket if that is a pipe. Throws
 * `CRIU_PROTOCOL`, with the socket still open.
 */
export async function receiveImage(socket: Fd): Promise<{ fd: Fd; begun: Buffer }> {
  const first = Buffer.alloc(2 ** 10)
  const { bytes, fds } = await receiveWithFds(socket, first)
  if (fds.length === 0) return { fd: socket, begun: first.subarray(0, bytes) }
  const fd = pipeIn(fds, bytes, 'read', 'an image')
  closeFd(socket)
  return { fd, begun: Buffer.alloc(0) }
}

/** The only descriptor, which came with one byte. Closes whatever else came, and throws `CRIU_PROTOCOL`. */
function pipeIn(fds: readonly Fd[], bytes: number, end: PipeEnd, what: string): Fd {
  const [fd] = fds
  if (bytes === 1 && fds.length === 1 && fd !== undefined && isPipeEnd(fd, end)) return fd
  for (const stray of fds) closeFd(stray)
  throw protocolFault(`${what} that is not the ${end} end of a pipe`)
}

/** What the clients of one criu that read have in common. */
export interface Reader extends Served {
  /** How they read, once that is known. */
  form: 'pipe' | 'socket' | undefined
}

export function newReader(): Reader {
  return { form: undefined, images: [], bytes: 0 }
}

/**
 * How long a reader may take to hand over its pipe before it gets bytes on its socket: it hands it over at once, or
 * never.
 */
const PIPE_MS = 200

/** What a client that reads gets: the list of snapshot ids, an image, or an errno. */
export type ReadAnswer = { ids: readonly string[] } | { image: StoredImage } | { error: number }

/**
 * Answers a client that reads, as soon as `finding` tells with what, and closes the socket; undefined: there is no such
 * image. `answered` is called when the client knows whether its image exists.
 */
export async function answerRead(
  socket: Fd,
  finding: Promise<ReadAnswer | undefined> | undefined,
  reader: Reader,
  answered = (): void => {},
): Promise<void> {
  let isOpen = true
  try {
    const answer = (await finding) ?? { error: ENOENT }
    const error = 'error' in answer ? answer.error : 0
    await writeAll(socket, encode(localImageReplyEntry, { error }), { socket: true })
    if ('ids' in answer) return await writeAll(socket, encodeIds(answer.ids), { socket: true })
    answered()
    if ('error' in answer) return
    isOpen = false
    await giveImage(socket, answer.image, reader)
  } finally {
    if (isOpen) closeFd(socket)
  }
}

/** Gives an image to a reader that knows it exists, and closes the socket. A reader that leaves early is no error. */
export async function giveImage(socket: Fd, image: StoredImage, reader: Reader): Promise<void> {
  const over = new AbortController()
  const handed = handedPipe(socket)
  handed.catch(() => {})
  let writing = Promise.resolve(false)
  let pipe: Fd | undefined
  try {
    const patience = sleep(PIPE_MS, over.signal).catch(() => {})
    const isKnown = reader.form !== 'socket' && (await Promise.race([handed.then(() => true), patience]))
    if (!isKnown) {
      reader.form ??= 'socket'
      writing = writeToSocket(socket, image)
    }
    pipe = await handed
  } finally {
    over.abort()
    // Wakes a write that still waits for room there, before another descriptor gets the number.
    shutDown(socket, true)
    const wrote = await writing
    closeFd(socket)
    if (pipe === undefined && wrote) {
      reader.images.push(image.name)
      reader.bytes += image.size
    }
  }
  if (pipe === undefined) return
  reader.form = 'pipe'
  await fillPipe(pipe, image, reader, () => {})
}

/** The pipe that a reader hands over; undefined if it closes without. */
async function handedPipe(socket: Fd): Promise<Fd | undefined> {
  const { bytes, fds } = await receiveWithFds(socket, Buffer.alloc(1)).catch(left)
  return bytes === 0 ? undefined : pipeIn(fds, bytes, 'write', 'a reader that hands over something')
}

/** A reader that closes its socket over unread bytes has gone as well. */
function left(error: unknown): { bytes: number; fds: Fd[] } {
  if (error instanceof Fault && error.code === 'LINK') return { bytes: 0, fds: [] }
  throw error
}

/** Writes the whole image to the socket, and ends it. Returns false if the reader left before. */
async function writeToSocket(socket: Fd, image: StoredImage): Promise<boolean> {
  try {
    for (const { window } of await piecesFor(image)) await writeAll(socket, window, { socket: true })
    shutDown(socket)
    return true
  } catch (error) {
    if (error instanceof Fault) return false
    throw error
  }
}

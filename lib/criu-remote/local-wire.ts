/**
 * `criu --remote`: how a criu of a tree between 2017 and June 2020 talks to us on its own host. docs/protocol/sockets.md has the protocol; this is what its two ends have
 * in common.
 *
 * Every image is a connection of its own, and its first message says what it is for. What follows depends on the client's age: until May 2020
 * the bytes of an image are on the socket itself, since then in a pipe that the client hands over, and nobody says which of the two it will be. A writer is
 * told by its first byte: with a descriptor or without. A reader that has a pipe hands it over at once, and one that has none is silent: it
 * gets its bytes on the socket after a while, and if a pipe comes all the same the image begins anew there, for such a client never reads from
 * the socket.
 *
 * The snapshot ids of criu (its `-D`) are any strings, and ours are names: so the ids of a dump and of the rounds before it travel
 * with it as one more image, which no criu asks for by its name.
 */
import { setTimeout } from 'node:timers/promises'
import { fillPipe, piecesFor, type Served } from '../criu/serve.ts'
import { Fault } from '../fault.ts'
import { type ImageName, imageName } from '../format/names.ts'
import { type Fd, isPipeEnd } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { writeAll } from '../kernel/transfer.ts'
import { receiveWithFds, shutDown } from '../kernel/unix.ts'
import type { StoredImage } from '../store/memory.ts'
import {
  decodeLocalImage,
  decodeSnapshotId,
  encodeLocalReply,
  encodeSnapshotId,
  messageDecoder,
  type RemoteRequest,
  requestOf,
} from './messages.ts'

/** Where criu looks for them, in its own directory: criu/include/img-remote.h. */
export const DUMP_SOCKET = 'img-proxy.sock'
export const RESTORE_SOCKET = 'img-cache.sock'

/** The image with the ids of a dump and of the rounds before it, the oldest first, as messages. */
export const IDS = imageName('snapshot-ids')

/** A client that has connected has something to say. */
export const FIRST_WORD_MS = 10_000
/** Dumps that one list can name. */
const MOST_IDS = 1001

/** What the client wants; undefined for one that leaves without a word. Throws `CRIU_PROTOCOL`, `NAME`, `TIMEOUT`. */
export async function readFirstWord(socket: Fd): Promise<RemoteRequest | undefined> {
  const body = await inTime(readMessage(socket))
  return body === undefined ? undefined : requestOf(decodeLocalImage(body))
}

/** What a client has ready when it connects. */
async function inTime<Word>(saying: Promise<Word>): Promise<Word> {
  saying.catch(() => {})
  const said = new AbortController()
  const late = setTimeout(FIRST_WORD_MS, 'late' as const, { ref: false, signal: said.signal })
  late.catch(() => {})
  try {
    const word = await Promise.race([saying, late])
    if (word === 'late') throw new Fault('TIMEOUT', 'a client of criu --remote said nothing')
    return word
  } finally {
    said.abort()
  }
}

/** The next message's body, and nothing of what comes after it; undefined at the end. Throws `CRIU_PROTOCOL`. */
async function readMessage(socket: Fd): Promise<Buffer | undefined> {
  const decoder = messageDecoder()
  for (;;) {
    const part = Buffer.alloc(Math.min(decoder.wanted, 2 ** 10))
    const { bytes, fds } = await receiveWithFds(socket, part)
    for (const stray of fds) closeFd(stray)
    if (fds.length > 0) throw unexpectedRequest('a descriptor in the middle of a message')
    if (bytes === 0) return void decoder.end()
    const { body } = decoder.push(part.subarray(0, bytes))
    if (body !== undefined) return body
  }
}

/** The ids that a client pushes, to the end of the connection. Throws `CRIU_PROTOCOL`, `TIMEOUT`. */
export function readIds(socket: Fd): Promise<string[]> {
  return inTime(readAllIds(socket))
}

async function readAllIds(socket: Fd): Promise<string[]> {
  const ids: string[] = []
  for (;;) {
    const body = await readMessage(socket)
    if (body === undefined) return ids
    if (ids.length === MOST_IDS) throw unexpectedRequest(`more than ${MOST_IDS} snapshot ids`)
    ids.push(decodeSnapshotId(body))
  }
}

export function encodeIds(ids: readonly string[]): Buffer {
  return Buffer.concat(ids.map(encodeSnapshotId))
}

/** The ids in an image `IDS`, which any sender may have made: none where it is missing or says something else. */
export function idsOf(images: ReadonlyMap<ImageName, StoredImage>): string[] {
  const image = images.get(IDS)
  const decoder = messageDecoder()
  const ids: string[] = []
  try {
    for (const { window } of image?.pieces ?? []) {
      for (let at = 0; at < window.length; ) {
        const { taken, body } = decoder.push(window.subarray(at))
        at += taken
        if (body !== undefined) ids.push(decodeSnapshotId(body))
        if (ids.length > MOST_IDS) return []
      }
    }
    decoder.end()
    return ids
  } catch (error) {
    if (error instanceof Fault) return []
    throw error
  }
}

/** Where the bytes of an image that a client writes come from. */
export interface Incoming {
  /** A pipe, or the client's socket: read to its end, and closed by whoever takes it. */
  fd: Fd
  /** What was read already. */
  begun: Buffer
}

/** What a writer has for us; its socket is closed unless it is that. Throws `CRIU_PROTOCOL`, and then it is not closed. */
export async function receiveImage(socket: Fd): Promise<Incoming> {
  const first = Buffer.alloc(2 ** 10)
  const { bytes, fds } = await receiveWithFds(socket, first)
  const [fd] = fds
  if (fd === undefined) return { fd: socket, begun: first.subarray(0, bytes) }
  if (fds.length === 1 && bytes === 1 && isPipeEnd(fd, 'read')) {
    closeFd(socket)
    return { fd, begun: Buffer.alloc(0) }
  }
  for (const stray of fds) closeFd(stray)
  throw unexpectedRequest('an image that is not the read end of a pipe')
}

export async function reply(socket: Fd, error: number): Promise<void> {
  await writeAll(socket, encodeLocalReply(error), { socket: true })
}

/** How the client at the other end reads, once that is known. */
export interface Reader {
  form: 'pipe' | 'socket' | undefined
}

/** How long a reader may take to hand over its pipe before it gets bytes on its socket: it does so at once, or never. */
const PIPE_MS = 200

/** Gives an image to a reader that was told that it is there, and closes the socket. A reader that has had enough is no error. */
export async function giveImage(socket: Fd, image: StoredImage, reader: Reader, served: Served): Promise<void> {
  const over = new AbortController()
  let known = false
  const handed = handedPipe(socket).finally(() => {
    known = true
  })
  handed.catch(() => {})
  let writing = Promise.resolve(false)
  let pipe: Fd | undefined
  try {
    const patience = setTimeout(PIPE_MS, undefined, { signal: over.signal }).catch(() => {})
    if (reader.form !== 'socket') await Promise.race([handed, patience])
    if (!known) {
      reader.form ??= 'socket'
      writing = writeToSocket(socket, image)
    }
    pipe = await handed
  } finally {
    over.abort()
    // Whoever still waits for room there is woken, before the number can be another's.
    shutDown(socket, true)
    const wrote = await writing
    closeFd(socket)
    if (pipe === undefined && wrote) count(image, served)
  }
  if (pipe === undefined) return
  reader.form = 'pipe'
  await fillPipe(pipe, image, served, () => {})
}

function count({ name, size }: StoredImage, served: Served): void {
  served.images.push(name)
  served.bytes += size
}

/** The pipe that a reader hands over; undefined if it leaves without. */
async function handedPipe(socket: Fd): Promise<Fd | undefined> {
  const { bytes, fds } = await receiveWithFds(socket, Buffer.alloc(1)).catch(left)
  const [fd] = fds
  if (bytes === 0) return undefined
  if (fds.length === 1 && fd !== undefined && isPipeEnd(fd, 'write')) return fd
  for (const stray of fds) closeFd(stray)
  throw unexpectedRequest('a reader that hands over something that is not the write end of a pipe')
}

/** Who closes a socket on bytes that it has not read is gone, too. */
function left(error: unknown): { bytes: number; fds: Fd[] } {
  if (error instanceof Fault && error.code === 'LINK') return { bytes: 0, fds: [] }
  throw error
}

/** The whole image, and its end, on the socket. Whether it got there. */
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

export function unexpectedRequest(what: string): Fault {
  return new Fault('CRIU_PROTOCOL', `criu --remote: ${what}`)
}

/**
 * What an image-proxy of `criu --remote` sends to its image-cache on one TCP connection, on which nothing is ever sent
 * back: a remote_image_entry (messages.ts), the bytes of the image, the next entry, up to the end of the stream.
 * docs/protocol/sockets.md describes it.
 *
 * The size in an entry is that of the whole image after this transfer. Where an image is appended to (`O_APPEND`) only
 * the new bytes follow. The proxies of 2017 send every image as an append, which comes to the same: there are no bytes
 * of it before.
 *
 * No message tells that a dump is complete, or that it failed: the stream ends where an entry could begin, and that is
 * all.
 */
import { Fault } from '../fault.ts'
import { remoteImageEntry } from '../format/criu-messages.ts'
import { LARGEST_IMAGE, MOST_IMAGES } from '../format/image-list.ts'
import { type ImageName, printable } from '../format/names.ts'
import {
  decode,
  decodeIds,
  encode,
  encodeIds,
  LIST,
  MessageDecoder,
  MOST_IDS,
  NO_SNAPSHOT,
  openMode,
  protocolFault,
  requestOf,
} from './messages.ts'

/** Most bytes of the list of snapshots. */
export const LONGEST_SNAPSHOTS = 2 ** 20
/** The list for restores with images from March 2019 on, and before: each asks for it in one of these places. */
const listPlaces = ['', NO_SNAPSHOT] as const

export type RemoteWireEvent =
  /**
   * A dump with this `-D`: it has begun, or, from a proxy that sends the list with the last dump, its first image
   * follows.
   */
  | { kind: 'push'; snapshot: string }
  /** The next images are those of this dump, which was pushed. No others of earlier dumps come. */
  | { kind: 'snapshot'; snapshot: string }
  /** An image of `bytes` bytes follows: it takes the place of an earlier one of that name, or is appended to it. */
  | { kind: 'image'; name: ImageName; append: boolean; bytes: number }
  /** Bytes of the image: a view of what was pushed. */
  | { kind: 'bytes'; bytes: Uint8Array }
  /** All bytes of the image came. */
  | { kind: 'imageEnd' }

/** A list of snapshots that is being received. */
interface OpenList {
  place: string
  body: Buffer
  /** Bytes of `body` that are there. */
  filled: number
}

export class RemoteWireDecoder {
  readonly #entries = new MessageDecoder()
  /** What the last entry announced, until all its bytes are here. */
  #open: { name: ImageName } | OpenList | undefined
  /** Bytes of that which are still to come. */
  #left = 0
  /** The `-D` of all dumps so far. */
  readonly #pushed: string[] = []
  /** The number of snapshots on the longest list so far. */
  #listed = 0
  /** The last list of each place. */
  readonly #lists = new Map<string, Buffer>()
  /** The dump whose images come now: its index in `#pushed`. */
  #current = -1
  /** The bytes of each of its images. */
  #sizes = new Map<ImageName, number>();

  /**
   * Yields what these bytes mean; must be read to the end before the next call. Throws `CRIU_PROTOCOL` for what no
   * proxy sends, `NAME` and `LIMIT`.
   */
  *push(bytes: Uint8Array): Generator<RemoteWireEvent, void, void> {
    for (let at = 0; at < bytes.length; ) {
      if (this.#open === undefined) {
        const { taken, body } = this.#entries.push(bytes.subarray(at))
        at += taken
        if (body === undefined) return
        yield* this.#begin(body)
      } else {
        const part = bytes.subarray(at, at + Math.min(this.#left, bytes.length - at))
        at += part.length
        this.#left -= part.length
        if ('name' in this.#open) yield { kind: 'bytes', bytes: part }
        else {
          this.#open.body.set(part, this.#open.filled)
          this.#open.filled += part.length
        }
      }
      if (this.#left === 0) yield* this.#complete()
    }
  }

  /** The stream has ended. Throws `TRUNCATED` unless an entry could begin here, and `CRIU_PROTOCOL` without a list. */
  end(): void {
    const open = this.#open
    if (open === undefined && !this.#entries.isInMessage) {
      if (this.#listed > 0 || this.#pushed.length === 0) return
      throw protocolFault('the stream ended without the list of snapshots')
    }
    const where = open === undefined ? 'an entry' : 'name' in open ? `image ${open.name}` : 'the list of snapshots'
    throw new Fault('TRUNCATED', `criu --remote: the stream ended in the middle of ${where}`, {
      hint: 'the image-proxy was stopped or the link was cut',
    })
  }

  *#begin(body: Uint8Array): Generator<RemoteWireEvent> {
    const entry = decode(remoteImageEntry, body)
    const request = requestOf(entry)
    switch (request.kind) {
      case 'write':
        yield* this.#select(request.snapshot)
        yield this.#beginImage(request.name, entry.size, request.append)
        break
      case 'push':
        this.#beginList(entry.snapshot_id, entry.size, request.append)
        break
      case 'finish':
        // Proxies until 2019 may pass a finish on, as an image of no bytes; the end of the stream tells the same.
        if (entry.size > 0 || request.of === 'restore') throw protocolFault('a finish with a body, or one of a restore')
        break
      case 'read':
      case 'pull':
        throw protocolFault('it asks for an image, and nothing is ever sent back')
    }
  }

  *#select(snapshot: string): Generator<RemoteWireEvent> {
    const pushed = this.#pushed
    if (pushed[this.#current] === snapshot) return
    let at = pushed.indexOf(snapshot)
    if (at < 0 && this.#listed === 0) {
      at = pushed.length
      yield this.#add(snapshot)
    }
    if (at < 0)
      throw protocolFault(`an image of ${printable(snapshot)}, which is not on the list of snapshots`, { hint: LOST })
    if (at < this.#current) throw protocolFault(`an image of ${printable(snapshot)} comes after those of a later dump`)
    this.#current = at
    this.#sizes = new Map()
    yield { kind: 'snapshot', snapshot }
  }

  #add(snapshot: string): RemoteWireEvent {
    if (this.#pushed.length >= MOST_IDS) throw tooMany(this.#pushed.length + 1)
    this.#pushed.push(snapshot)
    return { kind: 'push', snapshot }
  }

  #beginImage(name: ImageName, size: number, append: boolean): RemoteWireEvent {
    const sizes = this.#sizes
    if (size > LARGEST_IMAGE) throw new Fault('LIMIT', `image ${name} of ${size} bytes is above the limit`)
    const before = append ? (sizes.get(name) ?? 0) : 0
    if (size < before) throw protocolFault(`${name} has ${before} bytes, and is to have ${size} when more is added`)
    if (!sizes.has(name) && sizes.size >= MOST_IMAGES) {
      throw new Fault('LIMIT', `more than ${MOST_IMAGES} images in one snapshot`)
    }
    sizes.set(name, size)
    this.#left = size - before
    this.#open = { name }
    return { kind: 'image', name, append: before > 0, bytes: this.#left }
  }

  #beginList(place: string, size: number, append: boolean): void {
    const before = append ? this.#lists.get(place) : undefined
    const filled = before?.length ?? 0
    if (size < filled) throw protocolFault('the list of snapshots becomes shorter when one is added', { hint: LOST })
    if (size > LONGEST_SNAPSHOTS) throw new Fault('LIMIT', `a list of snapshots of ${size} bytes`)
    if (size === filled && append) return
    const body = Buffer.alloc(size)
    before?.copy(body)
    this.#open = { place, body, filled }
    this.#left = size - filled
  }

  *#complete(): Generator<RemoteWireEvent> {
    if (this.#open === undefined) return
    const done = this.#open
    this.#open = undefined
    if ('name' in done) return yield { kind: 'imageEnd' }
    this.#lists.set(done.place, done.body)
    const pushed = this.#pushed
    const listed = snapshotsOf(done.body)
    // A dump that is tried again takes the place of the one that failed.
    if (listed.length > this.#listed && listed.at(-1) === pushed[this.#current]) this.#sizes = new Map()
    this.#listed = Math.max(this.#listed, listed.length)
    const snapshots = listed.filter((snapshot, at) => snapshot !== listed[at - 1])
    if (snapshots.length < pushed.length)
      throw protocolFault('a dump whose images came is not on the list', { hint: LOST })
    if (pushed.some((snapshot, at) => snapshot !== snapshots[at])) {
      throw protocolFault('the list of snapshots is another one now', { hint: LOST })
    }
    for (const snapshot of snapshots.slice(pushed.length)) {
      if (pushed.includes(snapshot)) {
        throw protocolFault(`an earlier dump has the directory ${printable(snapshot)} too`, {
          hint: 'give every dump a -D of its own',
        })
      }
      yield this.#add(snapshot)
    }
  }
}

function snapshotsOf(list: Buffer): string[] {
  const ids = decodeIds([list], Number.POSITIVE_INFINITY)
  if (ids.length > MOST_IDS) throw tooMany(ids.length)
  return ids
}

function tooMany(dumps: number): Fault {
  return new Fault('LIMIT', `a chain of ${dumps} dumps, at most ${MOST_IDS} are allowed`)
}

/** The entry of a whole image. To be sent with one write of its own: the originals read it with one read. */
export function encodeImageEntry(snapshot: string, name: ImageName, size: number): Buffer {
  return encode(remoteImageEntry, { name, snapshot_id: snapshot, open_mode: openMode.write, size })
}

/**
 * The whole list of snapshots, the oldest first, for caches of every age. Each part is for one write. It can be sent
 * only once: when more is appended to a list, caches from May 2018 on forget what there was, and those before do not,
 * so they disagree about the bytes that follow.
 */
export function encodeList(snapshots: readonly string[]): Buffer[] {
  const body = encodeIds(snapshots)
  const entry = (place: string): Buffer =>
    encode(remoteImageEntry, { name: LIST, snapshot_id: place, open_mode: openMode.append, size: body.length })
  return listPlaces.flatMap((place) => [entry(place), body])
}

const LOST = 'image-proxies from May 2018 on lose the first dump when the second begins: dump without pre-dumps'

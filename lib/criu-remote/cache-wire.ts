/**
 * What an image-proxy of `criu --remote` says to its image-cache on one TCP connection, which is never answered: a remote_image_entry
 * (remote.ts), the bytes of the image, the next one, up to the end of the stream. docs/protocol/sockets.md describes it.
 *
 * An entry's size is that of the whole image when this transfer is over. Where an image is added to (`O_APPEND`) only what is new follows. The
 * proxies of 2017 say so of every image, which comes to the same: nothing of it is there before.
 *
 * There is no word for a dump that is complete, or failed: the stream ends where an entry could begin, and that is all.
 */
import { Fault } from '../fault.ts'
import { LARGEST_IMAGE, MOST_IMAGES } from '../format/image-list.ts'
import { type ImageName, printable } from '../format/names.ts'
import { MOST_ROUNDS } from '../format/wire.ts'
import {
  decodeRemoteImage,
  decodeSnapshotId,
  encodeRemoteImage,
  encodeSnapshotId,
  messageDecoder,
  openMode,
  requestOf,
} from './messages.ts'

/** Bytes of the list of snapshots. */
export const LONGEST_SNAPSHOTS = 2 ** 20
/** The list, of images from March 2019 on and before: who restores asks for it in one of these. */
const LIST = 'parent'
const listPlaces = ['', 'null'] as const

export type RemoteWireEvent =
  /** A dump with this `-D`: it has begun, or its first image comes, of a proxy that sends the list with the last dump. */
  | { kind: 'push'; snapshot: string }
  /** From here on images are those of this dump, which was pushed; no others of those before it come. */
  | { kind: 'snapshot'; snapshot: string }
  /** Its next `bytes` bytes: all of it, in place of what there is of that name, or what is added. */
  | { kind: 'image'; name: ImageName; append: boolean; bytes: number }
  /** A view of what was pushed. */
  | { kind: 'bytes'; bytes: Uint8Array }
  /** All of them came; at once where there are none. */
  | { kind: 'imageEnd' }

export interface RemoteWireDecoder {
  /**
   * What these bytes say, to be taken to the end before the next call. Throws `CRIU_PROTOCOL` for what no proxy says, `NAME`, `LIMIT`, and
   * `TRUNCATED` for a list of snapshots that is cut.
   */
  push(bytes: Uint8Array): Generator<RemoteWireEvent, void, void>
  /** The stream has ended. Throws `TRUNCATED` unless that is where an entry could begin. */
  end(): void
}

interface List {
  place: string
  body: Buffer
  filled: number
}

export function remoteWireDecoder(): RemoteWireDecoder {
  const entries = messageDecoder()
  /** An entry has begun and is not complete. */
  let inEntry = false
  let open: { name: ImageName; size: number } | List | undefined
  /** Bytes of it that are still to come. */
  let left = 0
  const pushed: string[] = []
  /** Entries of the longest list so far. */
  let told = 0
  const lists = new Map<string, Buffer>()
  /** The number of the dump that images come of, and what there is of each. */
  let current = -1
  let sizes = new Map<ImageName, number>()

  function* begin(body: Uint8Array): Generator<RemoteWireEvent> {
    const entry = decodeRemoteImage(body)
    const said = requestOf(entry)
    switch (said.kind) {
      case 'write':
        yield* select(said.snapshot)
        yield image(said.name, entry.size, said.append)
        break
      case 'push':
        list(entry.snapshot, entry.size, said.append)
        break
      case 'finish':
        // Those until 2019 may send it on, an image of nothing; the end of the stream says the same.
        if (entry.size > 0 || said.of === 'restore') throw wrong('a finish with a body, or one of a restore')
        break
      case 'read':
      case 'pull':
        throw wrong('it asks for an image, and nothing is ever sent back')
    }
  }

  function* select(snapshot: string): Generator<RemoteWireEvent> {
    if (pushed[current] === snapshot) return
    let at = pushed.indexOf(snapshot)
    if (at < 0 && told === 0) {
      at = pushed.length
      yield add(snapshot)
    }
    if (at < 0) throw wrong(`an image of ${printable(snapshot)}, which is not on the list of snapshots`, LOST)
    if (at < current) throw wrong(`an image of ${printable(snapshot)} comes after those of a later dump`)
    current = at
    sizes = new Map()
    yield { kind: 'snapshot', snapshot }
  }

  function add(snapshot: string): RemoteWireEvent {
    if (pushed.length > MOST_ROUNDS) throw tooMany(pushed.length + 1)
    pushed.push(snapshot)
    return { kind: 'push', snapshot }
  }

  function image(name: ImageName, size: number, append: boolean): RemoteWireEvent {
    if (size > LARGEST_IMAGE) throw new Fault('LIMIT', `image ${name} of ${size} bytes is above the limit`)
    const before = append ? (sizes.get(name) ?? 0) : 0
    if (size < before) throw wrong(`${name} has ${before} bytes, and is to have ${size} when more is added`)
    if (!sizes.has(name) && sizes.size >= MOST_IMAGES) {
      throw new Fault('LIMIT', `more than ${MOST_IMAGES} images in one snapshot`)
    }
    sizes.set(name, size)
    left = size - before
    open = { name, size }
    return { kind: 'image', name, append: before > 0, bytes: left }
  }

  function list(place: string, size: number, append: boolean): void {
    const before = append ? lists.get(place) : undefined
    const filled = before?.length ?? 0
    if (size < filled) throw wrong('the list of snapshots becomes shorter when one is added', LOST)
    if (size > LONGEST_SNAPSHOTS) throw new Fault('LIMIT', `a list of snapshots of ${size} bytes`)
    if (size === filled && append) return
    const body = Buffer.alloc(size)
    before?.copy(body)
    open = { place, body, filled }
    left = size - filled
  }

  function* complete(): Generator<RemoteWireEvent> {
    if (open === undefined) return
    const done = open
    open = undefined
    if ('name' in done) return yield { kind: 'imageEnd' }
    lists.set(done.place, done.body)
    const listed = snapshotsOf(done.body)
    // A dump that is tried again takes the place of the one that failed.
    if (listed.length > told && listed.at(-1) === pushed[current]) sizes = new Map()
    told = Math.max(told, listed.length)
    if (withoutRepeats(listed).length < pushed.length) throw wrong('a dump whose images came is not on the list', LOST)
    for (const [at, snapshot] of withoutRepeats(listed).entries()) {
      if (at < pushed.length && pushed[at] !== snapshot) throw wrong('the list of snapshots is another one now', LOST)
      if (at < pushed.length) continue
      if (pushed.includes(snapshot)) {
        throw wrong(`an earlier dump has the directory ${printable(snapshot)} too`, 'give every dump a -D of its own')
      }
      yield add(snapshot)
    }
  }

  return {
    *push(bytes) {
      for (let at = 0; at < bytes.length; ) {
        if (open === undefined) {
          const { taken, body } = entries.push(bytes.subarray(at))
          at += taken
          inEntry = body === undefined
          if (body === undefined) return
          yield* begin(body)
        } else {
          const some = bytes.subarray(at, at + Math.min(left, bytes.length - at))
          at += some.length
          left -= some.length
          if ('name' in open) yield { kind: 'bytes', bytes: some }
          else {
            open.body.set(some, open.filled)
            open.filled += some.length
          }
        }
        if (left === 0) yield* complete()
      }
    },
    end() {
      if (open === undefined && !inEntry && (told > 0 || pushed.length === 0)) return
      if (open === undefined && !inEntry) throw wrong('the stream ended without the list of snapshots')
      const where = open === undefined ? 'an entry' : 'name' in open ? `image ${open.name}` : 'the list of snapshots'
      throw new Fault('TRUNCATED', `criu --remote: the stream ended in the middle of ${where}`, {
        hint: 'the image-proxy was stopped or the link was cut',
      })
    },
  }
}

function snapshotsOf(list: Buffer): string[] {
  const messages = messageDecoder()
  const snapshots: string[] = []
  for (let at = 0; at < list.length; ) {
    const { taken, body } = messages.push(list.subarray(at))
    at += taken
    if (body !== undefined) snapshots.push(decodeSnapshotId(body))
    else throw wrong('the list of snapshots is cut')
  }
  if (snapshots.length > MOST_ROUNDS + 1) {
    throw tooMany(snapshots.length)
  }
  return snapshots
}

function tooMany(dumps: number): Fault {
  return new Fault('LIMIT', `a chain of ${dumps} dumps, at most ${MOST_ROUNDS + 1} are allowed`)
}

function withoutRepeats(snapshots: readonly string[]): string[] {
  return snapshots.filter((snapshot, at) => snapshot !== snapshots[at - 1])
}

/** What goes before the bytes of a whole image: to be sent with one write, for the originals read it with one read each. */
export function encodeImageEntry(snapshot: string, name: ImageName, size: number): Buffer {
  return encodeRemoteImage({ name, snapshot, mode: openMode.write, size })
}

/**
 * The whole list of snapshots, the oldest first, for caches of every age. Each part is for one write. To be said once: where a list is added to, those
 * from May 2018 on forget what there was, and those before do not, so that they disagree about the bytes that follow.
 */
export function encodeList(snapshots: readonly string[]): Buffer[] {
  const body = Buffer.concat(snapshots.map(encodeSnapshotId))
  const entry = (place: string): Buffer =>
    encodeRemoteImage({ name: LIST, snapshot: place, mode: openMode.append, size: body.length })
  return listPlaces.flatMap((place) => [entry(place), body])
}

const LOST = 'image-proxies from May 2018 on lose the first dump when the second begins: dump without pre-dumps'

function wrong(how: string, hint?: string): Fault {
  return new Fault('CRIU_PROTOCOL', `criu --remote: ${how}`, hint === undefined ? {} : { hint })
}

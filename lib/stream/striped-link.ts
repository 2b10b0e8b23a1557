/**
 * Several connections that look like one link: what is sent is cut into chunks, each goes to a connection that has
 * room at that moment, and the other end puts them in order again. So each connection gets as much as it carries, and
 * one that a loss slows down does not slow the others. If one breaks, all do: the session above goes on over new ones
 * (session.ts).
 *
 * The receiver reads one header ahead on each connection and no more: chunks that are not next wait in the kernel, so
 * order costs no memory and no copy. The sender copies each chunk behind its header: that is one system call, and its
 * caller may go on while a connection still waits for room. Refused: to ask the sockets how much they would take, as
 * criu-image-streamer does with its pipes. A socket takes megabytes long before they go out, and a chunk that waits
 * behind them holds up all others; with TCP_NOTSENT_LOWAT (see endpoint.ts) a socket has room only when it has nearly
 * nothing left to send.
 */
import { Fault } from '../fault.ts'
import { CHUNK_HEADER_BYTES, type Chunk, decodeChunk, encodeChunk } from '../format/stripes.ts'
import { openCondition } from './condition.ts'
import { filling, type Inlet, type Link, type Outlet } from './link.ts'

/** Bytes of a full chunk. */
export const CHUNK_BYTES = 128 * 2 ** 10

/**
 * One link over `links`; `peer` is its name in messages. `open` is awaited before the first chunk of a connection is
 * read. Reads throw `FORMAT` for chunks that come twice or are missing.
 */
export function stripedLink(
  links: readonly Link[],
  peer: string,
  open = async (_link: Link): Promise<void> => {},
): Link {
  const broken = new AbortController()
  const { signal } = broken
  signal.addEventListener('abort', () => {
    for (const link of links) link.destroy(signal.reason as Error)
  })
  return {
    inlet: new StripedInlet(links, broken, open),
    outlet: new StripedOutlet(links, broken),
    duplex: true,
    peer,
    destroy: (reason = new Fault('ABORTED', 'closed')) => broken.abort(reason),
  }
}

/** One connection at the sender, and where its chunks are put together. */
interface SendLane {
  outlet: Outlet
  chunk: Buffer
}

class StripedOutlet implements Outlet {
  /** Aborted when one connection breaks: then all do. */
  readonly #broken: AbortController
  readonly #lanes: number
  /** Connections that have room; the one that has waited longest first. */
  readonly #idle: SendLane[]
  /** Notified when there is one more idle connection, or all are broken. */
  readonly #changed = openCondition()
  /** Number of the next chunk. */
  #number = 0

  constructor(links: readonly Link[], broken: AbortController) {
    this.#broken = broken
    this.#lanes = links.length
    this.#idle = links.map(({ outlet }) => {
      return { outlet, chunk: Buffer.allocUnsafeSlow(CHUNK_HEADER_BYTES + CHUNK_BYTES) }
    })
    broken.signal.addEventListener('abort', this.#changed.notify)
  }

  async send(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
      const lane = await this.#idleLane()
      const free = (): void => {
        this.#idle.push(lane)
        this.#changed.notify()
      }
      this.#put(lane, bytes.subarray(at, at + CHUNK_BYTES)).then(free, (reason) => this.#broken.abort(reason))
      this.#number++
    }
  }

  /** Waits until all connections have room, and ends each of them with an empty chunk. */
  async finish(): Promise<void> {
    const all: SendLane[] = []
    while (all.length < this.#lanes) all.push(await this.#idleLane())
    const end = (lane: SendLane): Promise<void> => this.#put(lane, NOTHING).then(() => lane.outlet.finish())
    await Promise.all(all.map(end)).catch((reason) => this.#broken.abort(reason))
    this.#broken.signal.throwIfAborted()
  }

  async #idleLane(): Promise<SendLane> {
    for (;;) {
      this.#broken.signal.throwIfAborted()
      const lane = this.#idle.shift()
      if (lane !== undefined) return lane
      await this.#changed.wait()
    }
  }

  #put({ outlet, chunk }: SendLane, bytes: Uint8Array): Promise<void> {
    encodeChunk(chunk, { number: this.#number, length: bytes.length })
    chunk.set(bytes, CHUNK_HEADER_BYTES)
    return outlet.send(chunk.subarray(0, CHUNK_HEADER_BYTES + bytes.length))
  }
}

const NOTHING = Buffer.alloc(0)

/** One connection at the receiver. */
interface ReceiveLane {
  inlet: Inlet
  header: Buffer
  /** The chunk that comes next on this connection; undefined while its header is being read. */
  next: Chunk | undefined
  /** How much of that chunk is still to be read. */
  left: number
}

class StripedInlet implements Inlet {
  /** Aborted when one connection breaks: then all do. */
  readonly #broken: AbortController
  readonly #lanes: readonly ReceiveLane[]
  /** Notified when a header was read, or all connections are broken. */
  readonly #changed = openCondition()
  /** Number of the chunk that is being read, or comes next. */
  #number = 0
  /** The connection whose chunk is being read. */
  #current: ReceiveLane | undefined
  readonly fill: Inlet['fill'] = filling((into) => this.read(into))

  constructor(links: readonly Link[], broken: AbortController, open: (link: Link) => Promise<void>) {
    this.#broken = broken
    this.#lanes = links.map(({ inlet }) => {
      return { inlet, header: Buffer.alloc(CHUNK_HEADER_BYTES), next: undefined, left: 0 }
    })
    broken.signal.addEventListener('abort', this.#changed.notify)
    for (const [index, lane] of this.#lanes.entries()) {
      open(links[index] as Link)
        .then(() => this.#readHeader(lane))
        .catch((reason) => broken.abort(reason))
    }
  }

  async read(into: Uint8Array): Promise<number> {
    try {
      return await this.#readChunk(into)
    } catch (reason) {
      this.#broken.abort(reason)
      throw this.#broken.signal.reason
    }
  }

  async #readChunk(into: Uint8Array): Promise<number> {
    this.#current ??= await this.#nextLane()
    const lane = this.#current
    if (lane === undefined) return 0
    const bytes = await lane.inlet.read(into.subarray(0, lane.left))
    if (bytes === 0) throw closed()
    lane.left -= bytes
    if (lane.left > 0) return bytes
    this.#number++
    this.#current = undefined
    lane.next = undefined
    this.#readHeader(lane).catch((reason) => this.#broken.abort(reason))
    return bytes
  }

  /** The connection that has the next chunk, or undefined at the end. */
  async #nextLane(): Promise<ReceiveLane | undefined> {
    for (;;) {
      this.#broken.signal.throwIfAborted()
      const known = this.#lanes.map(({ next }) => next).filter((next) => next !== undefined)
      if (known.some((next) => next.number < this.#number)) {
        throw new Fault('FORMAT', `a chunk before ${this.#number} came twice`)
      }
      const lane = this.#lanes.find(({ next, left }) => next?.number === this.#number && left > 0)
      if (lane !== undefined) return lane
      if (known.length < this.#lanes.length) await this.#changed.wait()
      else if (known.every((next) => next.number === this.#number)) return undefined
      else throw new Fault('FORMAT', `chunk ${this.#number} is missing`)
    }
  }

  async #readHeader(lane: ReceiveLane): Promise<void> {
    if (!(await lane.inlet.fill(lane.header))) throw closed()
    lane.next = decodeChunk(lane.header)
    lane.left = lane.next.length
    this.#changed.notify()
  }
}

function closed(): Fault {
  return new Fault('LINK', 'the other end closed one of the connections')
}

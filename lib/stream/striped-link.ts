/**
 * Several connections that look like one link: what is said is cut into chunks, each goes to a connection that has room at
 * that moment, and the other end puts them in order again. So a connection gets as much as it carries, and one that a loss
 * slows down does not slow the others. If one breaks, all do: the conversation above goes on over new ones (resumable.ts).
 *
 * The receiver reads of each connection one header ahead and no more: what is not next waits in the kernel, so order costs
 * no memory and no copy. The sender copies each chunk behind its header: that is one system call, and its caller may go on
 * while a connection still waits for room. Refused: to ask the sockets how much they would take, as criu-image-streamer
 * does with its pipes. A socket takes megabytes long before they go out, and a chunk that waits behind them holds up all
 * others; with TCP_NOTSENT_LOWAT (see endpoint.ts) one has room only when it has nearly nothing left to send.
 */
import { Fault } from '../fault.ts'
import { CHUNK_HEADER_BYTES, type Chunk, decodeChunk, encodeChunk } from '../format/stripes.ts'
import { openCondition } from './condition.ts'
import { filling, type Inlet, type Link, type Outlet } from './link.ts'

/** Bytes of a full chunk. */
export const CHUNK_BYTES = 128 * 2 ** 10

/** `open` is awaited before the first chunk of a connection is read. */
export function stripedLink(
  links: readonly Link[],
  peer: string,
  open = async (_link: Link): Promise<void> => {},
): Link {
  let broken: Error | undefined
  const fail = (reason: unknown): void => {
    if (broken !== undefined) return
    broken = reason as Error
    for (const link of links) link.destroy(broken)
    outlet.wake()
    inlet.wake()
  }
  const alive = (): void => {
    if (broken !== undefined) throw broken
  }
  const outlet = stripedOutlet(links, alive, fail)
  const inlet = stripedInlet(links, open, alive, fail)
  return { inlet, outlet, duplex: true, peer, destroy: (reason = new Fault('ABORTED', 'closed')) => fail(reason) }
}

type Fail = (reason: unknown) => void

function stripedOutlet(links: readonly Link[], alive: () => void, fail: Fail): Outlet & { wake: () => void } {
  const bell = openCondition()
  /** Those that have room, and where their chunks are put together; the one that has waited longest first. */
  const idle = links.map(({ outlet }) => ({ outlet, chunk: Buffer.allocUnsafeSlow(CHUNK_HEADER_BYTES + CHUNK_BYTES) }))
  let number = 0

  async function room(): Promise<(typeof idle)[number]> {
    for (;;) {
      alive()
      const lane = idle.shift()
      if (lane !== undefined) return lane
      await bell.wait()
    }
  }

  function put({ outlet, chunk }: (typeof idle)[number], bytes: Uint8Array): Promise<void> {
    encodeChunk(chunk, { number, length: bytes.length })
    chunk.set(bytes, CHUNK_HEADER_BYTES)
    return outlet.send(chunk.subarray(0, CHUNK_HEADER_BYTES + bytes.length))
  }

  return {
    wake: bell.notify,
    async send(bytes) {
      for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
        const lane = await room()
        const free = (): void => {
          idle.push(lane)
          bell.notify()
        }
        put(lane, bytes.subarray(at, at + CHUNK_BYTES)).then(free, fail)
        number++
      }
    },
    settle: async () => {},
    async finish() {
      const all: (typeof idle)[number][] = []
      while (all.length < links.length) all.push(await room())
      const end = (lane: (typeof all)[number]): Promise<void> => put(lane, NOTHING).then(() => lane.outlet.finish())
      await Promise.all(all.map(end)).catch(fail)
      alive()
    },
  }
}

const NOTHING = Buffer.alloc(0)

interface Lane {
  inlet: Inlet
  header: Buffer
  /** The chunk that comes next here, once its header is read; and how much of it is still to be read. */
  next: Chunk | undefined
  left: number
}

function stripedInlet(
  links: readonly Link[],
  open: (link: Link) => Promise<void>,
  alive: () => void,
  fail: Fail,
): Inlet & { wake: () => void } {
  const bell = openCondition()
  const lanes = links.map(({ inlet }): Lane => {
    return { inlet, header: Buffer.alloc(CHUNK_HEADER_BYTES), next: undefined, left: 0 }
  })
  let number = 0
  let current: Lane | undefined

  async function lookAhead(lane: Lane): Promise<void> {
    if (!(await lane.inlet.fill(lane.header))) throw closed()
    lane.next = decodeChunk(lane.header)
    lane.left = lane.next.length
    bell.notify()
  }

  /** The connection that has the next chunk, or undefined at the end. */
  async function turn(): Promise<Lane | undefined> {
    for (;;) {
      alive()
      const known = lanes.map(({ next }) => next).filter((next) => next !== undefined)
      if (known.some((next) => next.number < number)) throw new Fault('FORMAT', `a chunk before ${number} came twice`)
      const due = lanes.find(({ next, left }) => next?.number === number && left > 0)
      if (due !== undefined) return due
      if (known.length < lanes.length) await bell.wait()
      else if (known.every((next) => next.number === number)) return undefined
      else throw new Fault('FORMAT', `chunk ${number} is missing`)
    }
  }

  async function readChunk(into: Uint8Array): Promise<number> {
    current ??= await turn()
    if (current === undefined) return 0
    const lane = current
    const got = await lane.inlet.read(into.subarray(0, lane.left))
    if (got === 0) throw closed()
    lane.left -= got
    if (lane.left > 0) return got
    number++
    current = undefined
    lane.next = undefined
    lookAhead(lane).catch(fail)
    return got
  }

  async function read(into: Uint8Array): Promise<number> {
    try {
      return await readChunk(into)
    } catch (reason) {
      fail(reason)
      alive()
      throw reason
    }
  }

  for (const [index, lane] of lanes.entries()) {
    open(links[index] as Link)
      .then(() => lookAhead(lane))
      .catch(fail)
  }
  return {
    wake: bell.notify,
    read,
    fill: filling(read),
  }
}

function closed(): Fault {
  return new Fault('LINK', 'the other end closed one of the connections')
}

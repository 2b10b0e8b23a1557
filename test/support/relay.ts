/** A link that does what it is told: between a proxy and a cache, it cuts, flips or stalls at a frame. */
import net from 'node:net'
import { frameType, HEADER_BYTES } from '../../lib/format/frame.ts'
import { PREAMBLE_BYTES } from '../../lib/format/preamble.ts'

type FrameName = keyof typeof frameType

export interface Trouble {
  /** The frame at which it comes; the first of its kind, or the `nth` (from 1). Or a byte of the stream. */
  at: FrameName | number
  nth?: number
  from: 'source' | 'target'
  /** `stall`: nothing passes any more, in neither direction, and the sockets stay. */
  what: 'cut before' | 'cut after' | 'flip' | 'stall'
  /** Later connections: they pass, they are refused, or they stall as well. */
  later?: 'pass' | 'refuse' | 'stall'
}

export interface Relay {
  port: string
  /** Resolves when the trouble has come. */
  happened: Promise<void>
  /** From now on everything passes again; what stalled goes on. */
  mend(): void
  close(): void
}

/** Connects to `port` for whoever connects to it. The trouble comes once, on the first connection. */
export async function relay(port: string, trouble?: Trouble): Promise<Relay> {
  let tell = (): void => {}
  const happened = new Promise<void>((resolve) => {
    tell = resolve
  })
  const sockets = new Set<net.Socket>()
  let connections = 0
  let over = false
  const stalled = new Set<net.Socket>()
  const kept: (() => void)[] = []
  const server = net.createServer({ allowHalfOpen: true }, (near) => {
    const first = connections++ === 0
    if (!first && over && trouble?.later === 'refuse') return void near.destroy()
    const far = net.connect({ port: Number(port), host: '127.0.0.1', allowHalfOpen: true })
    const cut = (): void => {
      near.destroy()
      far.destroy()
    }
    const stall = (): void => {
      for (const socket of [near, far]) {
        stalled.add(socket)
        socket.pause()
      }
    }
    for (const [socket, other, from] of [
      [near, far, 'source'],
      [far, near, 'target'],
    ] as const) {
      sockets.add(socket)
      socket.on('error', cut)
      socket.on('close', () => other.destroy())
      // Who refuses ends its writing side first, and its last word must get through.
      socket.on('end', () => other.end())
      const plan = first && trouble?.from === from ? watcher(trouble) : undefined
      socket.on('data', (chunk: Buffer) => {
        const hit = plan?.(chunk)
        if (hit === undefined) return void other.write(chunk)
        over = true
        if (trouble?.what === 'flip') other.write(chunk)
        else if (hit > 0) other.write(chunk.subarray(0, hit))
        if (trouble?.what === 'stall') {
          kept.push(() => other.write(chunk.subarray(hit)))
          stall()
        } else if (trouble?.what !== 'flip') {
          // What was written must get through before the cut.
          setTimeout(cut, 100)
          socket.removeAllListeners('data').pause()
        }
        tell()
      })
    }
    if (!first && over && trouble?.later === 'stall') stall()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    port: String((server.address() as net.AddressInfo).port),
    happened,
    mend() {
      over = false
      for (const write of kept.splice(0)) write()
      for (const socket of stalled) socket.resume()
    },
    close() {
      server.close()
      for (const socket of sockets) socket.destroy()
    },
  }
}

/** Follows the frames of one direction. Returns how many bytes of a chunk come before the trouble, once. */
function watcher({ at, nth = 1, what }: Trouble): (chunk: Buffer) => number | undefined {
  let position = 0
  let next = PREAMBLE_BYTES
  let header = Buffer.alloc(0)
  let seen = 0
  let target = typeof at === 'number' ? at : undefined
  return (chunk) => {
    for (let done = 0; target === undefined && done < chunk.length; ) {
      if (position + done < next) {
        done += Math.min(chunk.length - done, next - position - done)
        continue
      }
      const part = chunk.subarray(done, done + HEADER_BYTES - header.length)
      header = Buffer.concat([header, part])
      done += part.length
      if (header.length < HEADER_BYTES) break
      const start = next
      next = start + HEADER_BYTES + header.readUInt32LE(16)
      if (header.readUInt8(0) === frameType[at as FrameName] && ++seen === nth) {
        target = what === 'cut after' ? next : what === 'flip' ? start + HEADER_BYTES + 1 : start
      }
      header = Buffer.alloc(0)
    }
    const from = position
    position += chunk.length
    if (target === undefined || target > position || (what === 'flip' && target >= position)) return undefined
    const hit = Math.max(0, target - from)
    if (what === 'flip') chunk[hit] = (chunk[hit] as number) ^ 1
    target = Number.POSITIVE_INFINITY
    return hit
  }
}

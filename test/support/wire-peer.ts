/** Peers of a cache over TCP: honest ones, and those that say what they are told and do not listen. */
import net from 'node:net'
import { setTimeout } from 'node:timers/promises'
import type { Credentials } from '../../lib/credentials.ts'
import { digest } from '../../lib/format/digest.ts'
import { encodeFrame, type Frame } from '../../lib/format/frame.ts'
import { encodeImageList, type ImageEntry } from '../../lib/format/image-list.ts'
import { imageName, type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { connectEndpoint } from '../../lib/stream/endpoint.ts'
import { frameReader } from '../../lib/stream/frames.ts'
import { anyFrame } from './any-frame.ts'

/** Bytes of an image in one frame. */
const PIECE = 2 ** 20
/** A peer that hears nothing for longer gives up. */
const PATIENCE_MS = 20_000

export interface Where {
  port: string
  host?: string
  credentials?: Credentials
}

function sum(bytes: Uint8Array): bigint {
  const state = digest()
  state.update(bytes)
  return state.finish()
}

/** A snapshot as it goes over the wire, without the preamble. */
export function* snapshotBytes(id: string, images: Record<string, Buffer>): Generator<Uint8Array> {
  yield encodeFrame({ type: 'snapshot', id: snapshotId(id) })
  const entries: ImageEntry[] = []
  for (const [index, [name, bytes]] of Object.entries(images).entries()) {
    const channel = index + 1
    const entry = { name: imageName(name), size: bytes.length, digest: sum(bytes) }
    entries.push(entry)
    yield encodeFrame({ type: 'image', channel, name: entry.name })
    for (let offset = 0; offset < bytes.length; offset += PIECE) {
      const piece = bytes.subarray(offset, offset + PIECE)
      yield encodeFrame({ type: 'data', channel, offset, length: piece.length })
      yield piece
    }
    yield encodeFrame({ type: 'imageEnd', channel, size: entry.size, digest: entry.digest })
  }
  yield encodeFrame({ type: 'snapshotEnd', images: entries, digest: sum(encodeImageList(entries)) })
}

/** The last frame that comes; undefined where the link ends without a word. */
export type Answer = Frame | undefined

async function conversation<Result>(
  { host = '127.0.0.1', port, credentials }: Where,
  body: (say: (bytes: Uint8Array) => Promise<void>, hear: (into?: Buffer[]) => Promise<Answer>) => Promise<Result>,
): Promise<Result> {
  const signal = AbortSignal.timeout(PATIENCE_MS)
  const link = await connectEndpoint({ kind: 'tcp', host, port: Number(port), credentials }, 2000, signal)
  const stop = (): void => link.destroy(signal.reason as Error)
  signal.addEventListener('abort', stop)
  const reader = frameReader(link.inlet)
  try {
    return await body(link.outlet.send, async (into = []) => {
      const frame = await reader.next(anyFrame).catch(() => undefined)
      if (frame?.type !== 'data') return frame
      const bytes = Buffer.alloc(frame.length)
      if (!(await link.inlet.fill(bytes))) return undefined
      into.push(bytes)
      return frame
    })
  } finally {
    signal.removeEventListener('abort', stop)
    link.destroy()
  }
}

/** Leaves a snapshot; returns what the cache says in the end. Throws where it cannot connect. */
export function leave(where: Where, id: string, images: Record<string, Buffer>): Promise<Answer> {
  return conversation(where, async (say, hear) => {
    const saying = (async () => {
      await say(encodePreamble())
      for (const bytes of snapshotBytes(id, images)) await say(bytes)
    })()
    // Who is refused cannot say it to the end.
    saying.catch(() => {})
    for (;;) {
      const frame = await hear()
      if (frame === undefined || frame.type === 'sealed' || frame.type === 'refused') return frame
    }
  })
}

export interface Taken {
  id: SnapshotId
  images: Map<string, Buffer>
}

/** In a line for people: what came of it. */
export function outcome(answer: Answer): string {
  if (answer?.type === 'refused' || answer?.type === 'failed') return `${answer.code}: ${answer.reason}`
  return answer?.type ?? 'nothing'
}

/** Takes a snapshot, the newest if no id is given; or returns the outcome. Throws where it cannot connect. */
export function take(where: Where, id: string | undefined, timeoutMs = 0): Promise<Taken | string> {
  return conversation(where, async (say, hear) => {
    const wish: Frame = { type: 'get', id: id === undefined ? undefined : snapshotId(id), timeoutMs }
    await say(Buffer.concat([encodePreamble(), encodeFrame(wish)]))
    const pieces = new Map<string, Buffer[]>()
    let found: SnapshotId | undefined
    let last: Buffer[] = []
    for (;;) {
      const frame = await hear(last)
      if (frame?.type === 'snapshot') found = frame.id
      else if (frame?.type === 'image') {
        last = []
        pieces.set(frame.name, last)
      } else if (frame?.type === 'snapshotEnd' && found !== undefined) {
        await say(encodeFrame({ type: 'sealed', digest: frame.digest }))
        return { id: found, images: new Map([...pieces].map(([name, all]) => [name, Buffer.concat(all)])) }
      } else if (frame === undefined || frame.type === 'refused' || frame.type === 'failed') return outcome(frame)
    }
  })
}

/** Connections that a test made, closed together. */
export interface Crowd {
  /**
   * Connects, says `words`, and reads nothing, or throws away what it `reads`. `over` is told when the connection is
   * over.
   */
  join(words: Uint8Array[], how?: { reads?: boolean; over?: () => void }): net.Socket
  readonly sockets: ReadonlySet<net.Socket>
  disperse(): void
}

export function crowd({ host = '127.0.0.1', port }: Where): Crowd {
  const sockets = new Set<net.Socket>()
  let over = false
  return {
    sockets,
    join(words, how = {}) {
      const socket = new net.Socket({ allowHalfOpen: true })
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('end', () => socket.destroy())
      socket.on('close', () => {
        sockets.delete(socket)
        if (!over) how.over?.()
      })
      // One that is paused before it connects reads nothing at all.
      if (how.reads === true) socket.resume()
      else socket.pause()
      socket.connect({ host, port: Number(port) })
      for (const bytes of words) socket.write(bytes)
      return socket
    },
    disperse() {
      over = true
      for (const socket of sockets) socket.destroy()
    },
  }
}

/**
 * Says it again and again until it is sealed. Returns how many times; throws what came last where that takes longer
 * than `limitMs`.
 */
export async function leaveAtLast(
  where: Where,
  id: string,
  images: Record<string, Buffer>,
  limitMs = 60_000,
): Promise<number> {
  let last = 'nothing'
  const end = performance.now() + limitMs
  for (let tries = 1; performance.now() < end; tries++) {
    last = await leave(where, id, images).then(outcome, ({ message }: Error) => message)
    if (last === 'sealed') return tries
    await setTimeout(100)
  }
  throw new Error(`${id} was not sealed within ${limitMs / 1000} s: ${last}`)
}

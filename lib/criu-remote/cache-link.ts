/** The connection to an image-cache of `criu --remote`, which says nothing on it: whether it is there is all that can be seen. */
import { Fault } from '../fault.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import type { Link, Outlet } from '../stream/link.ts'
import { whenConnected } from '../stream/source-link.ts'

export interface RemoteLine {
  readonly outlet: Outlet
  /** Rejects where it cannot be made. */
  readonly connected: Promise<unknown>
  /** Aborted when the cache is gone, takes nothing, or somebody who is heeded wants it. */
  readonly signal: AbortSignal
  /** Heeds this signal too, until what it returns is called. */
  heed(signal: AbortSignal): () => void
  /** All was sent. Throws `signal`'s reason if the cache has gone before. */
  finish(): Promise<void>
  /** What is told of `error`, which something that used the connection threw. */
  reasonOf(error: unknown): unknown
  /** Ends the stream, if that is to be seen there still, and releases it. */
  close(): Promise<void>
}

/** How long what is under way may take when something has failed. */
const GRACE_MS = 500

/** Connects; `timeoutMs`: how long the cache may be out of reach, or take nothing. */
export function openRemoteLine(cache: Endpoint, timeoutMs: number): RemoteLine {
  const stop = new AbortController()
  const { signal } = stop
  const connecting = connectEndpoint(cache, timeoutMs, signal)
  const outlet = whenConnected(connecting, timeoutMs, stop)
  let isConnected = false
  let finished = false
  const cut = (): void => void connecting.then((link) => link.destroy(signal.reason as Error)).catch(() => {})
  signal.addEventListener('abort', () => setTimeout(cut, GRACE_MS).unref())

  async function watch(link: Link): Promise<void> {
    isConnected = true
    const said = await link.inlet.read(Buffer.alloc(1)).catch(broken)
    if (!finished) throw said === 0 ? gone() : talkative()
  }
  connecting.then(watch).catch((reason: unknown) => stop.abort(reason))

  return {
    outlet,
    connected: connecting,
    signal,
    heed(other) {
      const heard = (): void => stop.abort(other.reason)
      if (other.aborted) heard()
      other.addEventListener('abort', heard)
      return () => other.removeEventListener('abort', heard)
    },
    async finish() {
      await connecting
      signal.throwIfAborted()
      finished = true
      await outlet.finish()
    },
    reasonOf(error) {
      if (signal.aborted) return signal.reason
      return isConnected && error instanceof Fault && error.code === 'LINK' ? gone() : error
    },
    async close() {
      if (isConnected && !signal.aborted) await outlet.finish().catch(() => {})
      stop.abort(new Fault('ABORTED', 'over'))
      cut()
    },
  }
}

/** One that ends with bytes of ours unread says so by breaking the connection. */
function broken(error: unknown): number {
  if (error instanceof Fault && error.code === 'LINK') return 0
  throw error
}

function gone(): Fault {
  return new Fault('LINK', 'the image-cache closed the connection', {
    hint: 'that of criu --remote takes one connection, and ends with it: start it again',
  })
}

function talkative(): Fault {
  return new Fault('CRIU_PROTOCOL', 'the other end speaks, as no image-cache of criu --remote does', {
    hint: 'start it with --wire criu-remote, or this without',
  })
}

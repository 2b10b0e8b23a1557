/** The connection to an image-cache of `criu --remote`. Such a cache sends nothing on it: only its end can be seen. */
import { Fault } from '../fault.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import type { Link, Outlet } from '../stream/link.ts'
import { whenConnected } from '../stream/source-link.ts'

export interface RemoteCacheLink {
  readonly outlet: Outlet
  /** Rejects if the connection cannot be made. */
  readonly connected: Promise<unknown>
  /** Aborted when the cache is gone or takes nothing, and by `abort` and `abortOn`. */
  readonly signal: AbortSignal
  abort(reason: unknown): void
  /** Aborts when `signal` does, until the returned function is called. */
  abortOn(signal: AbortSignal): () => void
  /** Ends the stream. Throws the reason of `signal` if that is aborted. */
  finish(): Promise<void>
  /** The reason to report for `error`, which something that used the connection threw. */
  reasonOf(error: unknown): unknown
  /** Ends the stream, if the cache can still see that, and closes the connection. */
  close(): Promise<void>
}

/** How long work that is under way may take when something has failed. */
const GRACE_MS = 500

/** Connects. `timeoutMs`: how long the cache may be out of reach, or take nothing. */
export function openRemoteCacheLink(cache: Endpoint, timeoutMs: number): RemoteCacheLink {
  const stop = new AbortController()
  const { signal } = stop
  const connected = connectEndpoint(cache, timeoutMs, signal)
  const outlet = whenConnected(connected, timeoutMs, stop)
  let isConnected = false
  let isFinished = false
  const destroy = (): void => void connected.then((link) => link.destroy(signal.reason as Error)).catch(() => {})
  signal.addEventListener('abort', () => setTimeout(destroy, GRACE_MS).unref())

  async function watch(link: Link): Promise<void> {
    isConnected = true
    const got = await link.inlet.read(Buffer.alloc(1)).catch(endOfLink)
    if (!isFinished) throw got === 0 ? cacheGone() : cacheSpoke()
  }
  connected.then(watch).catch((reason: unknown) => stop.abort(reason))

  return {
    outlet,
    connected,
    signal,
    abort: (reason) => stop.abort(reason),
    abortOn(other) {
      const abort = (): void => stop.abort(other.reason)
      if (other.aborted) abort()
      other.addEventListener('abort', abort)
      return () => other.removeEventListener('abort', abort)
    },
    async finish() {
      await connected
      signal.throwIfAborted()
      isFinished = true
      await outlet.finish()
    },
    reasonOf(error) {
      if (signal.aborted) return signal.reason
      return isConnected && error instanceof Fault && error.code === 'LINK' ? cacheGone() : error
    },
    async close() {
      if (isConnected && !signal.aborted) await outlet.finish().catch(() => {})
      stop.abort(new Fault('ABORTED', 'over'))
      destroy()
    },
  }
}

/** A cache that ends with unread bytes of ours resets the connection: an end like any other. */
function endOfLink(error: unknown): number {
  if (error instanceof Fault && error.code === 'LINK') return 0
  throw error
}

function cacheGone(): Fault {
  return new Fault('LINK', 'the image-cache closed the connection', {
    hint: 'that of criu --remote takes one connection, and ends with it: start it again',
  })
}

function cacheSpoke(): Fault {
  return new Fault('CRIU_PROTOCOL', 'the other end speaks, as no image-cache of criu --remote does', {
    hint: 'start it with --wire criu-remote, or this without',
  })
}

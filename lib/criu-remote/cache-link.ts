/** The connection to an image-cache of `criu --remote`. Such a cache sends nothing on it: only its end can be seen. */
import { Fault } from '../fault.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import type { Link, Outlet } from '../stream/link.ts'
import { whenConnected } from '../stream/source-link.ts'

/** How long work that is under way may take when something has failed. */
const GRACE_MS = 500

/** A dump and all rounds before it share one. */
export class RemoteCacheLink {
  /** Aborted when the cache is gone or takes nothing, and by whoever gives up. */
  readonly stop = new AbortController()
  /** Rejects if the connection cannot be made. */
  readonly connected: Promise<Link>
  readonly outlet: Outlet
  #isConnected = false
  #isFinished = false

  /** Connects. `timeoutMs`: how long the cache may be out of reach, or take nothing. */
  constructor(cache: Endpoint, timeoutMs: number) {
    const { signal } = this.stop
    this.connected = connectEndpoint(cache, timeoutMs, signal)
    this.outlet = whenConnected(this.connected, timeoutMs, this.stop)
    signal.addEventListener('abort', () => setTimeout(() => this.#destroy(), GRACE_MS).unref())
    this.connected.then((link) => this.#watch(link)).catch((reason: unknown) => this.stop.abort(reason))
  }

  get signal(): AbortSignal {
    return this.stop.signal
  }

  /** Ends the stream. Throws the reason of `signal` if that is aborted. */
  async finish(): Promise<void> {
    await this.connected
    this.signal.throwIfAborted()
    this.#isFinished = true
    await this.outlet.finish()
  }

  /** The reason to report for `error`, which something that used the connection threw. */
  reasonOf(error: unknown): unknown {
    if (this.signal.aborted) return this.signal.reason
    return this.#isConnected && error instanceof Fault && error.code === 'LINK' ? cacheGone() : error
  }

  /** Ends the stream, if the cache can still see that, and closes the connection. */
  async close(): Promise<void> {
    if (this.#isConnected && !this.signal.aborted) await this.outlet.finish().catch(() => {})
    this.stop.abort(new Fault('ABORTED', 'over'))
    this.#destroy()
  }

  async #watch(link: Link): Promise<void> {
    this.#isConnected = true
    const got = await link.inlet.read(Buffer.alloc(1)).catch(endOfLink)
    if (!this.#isFinished) throw got === 0 ? cacheGone() : cacheSpoke()
  }

  #destroy(): void {
    this.connected.then((link) => link.destroy(this.signal.reason as Error)).catch(() => {})
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

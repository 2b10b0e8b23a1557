/**
 * The image-proxy's end of the wire of `criu --remote`: a criu that dumps to us, sent to an image-cache of that time (`--wire criu-remote`).
 *
 * Every dump has a connection of its own, as such a cache takes only one, and is over with its end. The cache never answers. So the tasks are let go when our kernel has taken
 * all bytes for it, and nobody can say whether they have arrived.
 */
import { Fault } from '../fault.ts'
import { printable } from '../format/names.ts'
import { LONGEST_STRING } from '../format/remote.ts'
import { openProcess } from '../kernel/process.ts'
import type { Report } from '../progress.ts'
import { memorySnapshot } from '../store/memory.ts'
import { openPool } from '../store/pool.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import type { Approach } from './approach.ts'
import type { CriuCommand } from './criu-command.ts'
import { closedGate } from './gate.ts'
import { whenConnected } from './line.ts'
import { sendDump } from './remote-sink.ts'
import { reportSmallPipes } from './small-pipes.ts'

/** Sends what one criu dumps, and lets it go. Throws what went wrong; criu has failed then, unless it had written all. */
export type Deliver = (criu: Approach, command: CriuCommand | undefined, place: DeliverPlace) => Promise<void>

export interface DeliverPlace {
  /** Where our action script is. */
  gates: string
  report: Report
  signal: AbortSignal
  onBytes: (bytes: number) => void
}

export interface RemoteDelivery {
  cache: Endpoint
  /** Most bytes of memory for images that are not sent yet. */
  maxMemory: number
  /** The snapshot id that the cache gets; the `-D` of the criu that dumps if undefined. */
  snapshot: string | undefined
  /** How long the cache may be out of reach, or take nothing. */
  timeoutMs: number
}

function checkSnapshot(text: string): void {
  const bytes = Buffer.byteLength(text)
  if (bytes > 0 && bytes <= LONGEST_STRING) return
  throw new Fault('USAGE', `snapshot id refused: ${printable(text)}`, { hint: 'the -D of the criu that restores' })
}

/** Throws `USAGE` for what cannot be the id of a snapshot. */
export function remoteDelivery({ cache, maxMemory, snapshot, timeoutMs }: RemoteDelivery): Deliver {
  if (snapshot !== undefined) checkSnapshot(snapshot)
  const pool = openPool(maxMemory)
  return async (criu, command, { gates, report, signal, onBytes }) => {
    const begun = performance.now()
    const gate = closedGate(gates, criu.pid, 'post-dump')
    const task = openProcess(criu.pid)
    let atGate = false
    const whenHeld = gate.held.then(() => {
      atGate = true
    })
    whenHeld.catch(() => {})
    const stop = new AbortController()
    const outside = (): void => stop.abort(signal.reason)
    signal.addEventListener('abort', outside)
    const connecting = connectEndpoint(cache, timeoutMs, stop.signal)
    connecting.catch((reason: unknown) => stop.abort(reason))
    const outlet = whenConnected(connecting, timeoutMs, stop)
    const cut = (): void => void connecting.then((link) => link.destroy(stop.signal.reason as Error)).catch(() => {})
    stop.signal.addEventListener('abort', () => setTimeout(cut, GRACE_MS).unref())
    const source = criu.images({ complete: whenHeld, taken: async () => {} })
    try {
      const memory = memorySnapshot(pool)
      try {
        if (criu.bytes !== undefined) {
          Promise.all([connecting, memory.reserve(criu.bytes)]).then(criu.open, () => {})
        }
        const id = snapshot ?? idOf(command)
        const sent = await sendDump(outlet, memory, source, {
          snapshot: id,
          signal: stop.signal,
          onBytes,
          onTaken() {
            // Where it does not wait for us it kills the tasks now, and a signal comes too late.
            if (!atGate) signal.removeEventListener('abort', outside)
          },
          confirm() {
            if (criu.bytes !== undefined && !atGate) throw unfinished()
          },
        })
        await outlet.finish()
        gate.open()
        // Its script must find the gate open, and not gone.
        if (atGate) await task?.ended
        const ms = performance.now() - begun
        report({ event: 'sent', id, images: sent.images.length, bytes: sent.bytes, ms, verified: false })
      } finally {
        memory.drop()
      }
    } catch (error) {
      gate.shut()
      source.destroy(error as Error)
      // Whoever restores there waits until the stream ends; it finds no inventory.img.
      if (!stop.signal.aborted) await outlet.finish().catch(() => {})
      throw stop.signal.aborted ? stop.signal.reason : error
    } finally {
      signal.removeEventListener('abort', outside)
      stop.abort(new Fault('ABORTED', 'over'))
      cut()
      gate.remove()
      criu.remove()
      task?.close()
      reportSmallPipes(report)
    }
  }
}

/** How long what is under way on the link may take when the dump has failed. */
const GRACE_MS = 500

function idOf(command: CriuCommand | undefined): string {
  if (command !== undefined) return command.images
  throw new Fault('CRIU', 'cannot see the -D of this criu, by which a restore finds its images', {
    hint: 'run this command in the pid namespace of that criu, or add --snapshot DIR',
  })
}

function unfinished(): Fault {
  return new Fault('FAILED_DUMP', 'criu did not come to its post-dump: the dump did not finish', {
    hint: "the process was not moved; see the dump's own log",
  })
}

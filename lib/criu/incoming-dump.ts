/**
 * A criu that connects to dump, before it freezes the tasks. A criu that runs our action script waits at pre-dump until
 * the target is reached and has memory ready: page faults in the receiver cost more than the bytes on the link, and so
 * they happen while the tasks still run.
 */
import { Fault } from '../fault.ts'
import type { Fd } from '../kernel/fd.ts'
import { memoryOfTree } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { hasSpoken, peerPid } from '../kernel/unix.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import { rejectAfter } from '../stream/wait.ts'
import { closedGate } from './action-script.ts'
import { CapturedImages } from './capture.ts'

/** What an image source waits for, and tells, during a hand-over. */
export interface DumpSteps {
  /** Resolves when criu has written all and waits at post-dump. */
  complete: Promise<void>
  /** Resolves when the target has acknowledged so many images; rejects where it cannot take them. */
  taken(images: number): Promise<void>
  /** Called when criu was told that all is taken: unless it waits at our gate, it may kill the tasks from now on. */
  answered(): void
}

/** A criu that has come to us and will dump. */
export interface IncomingDump {
  readonly pid: number
  /** About how many bytes it will send; undefined if it does not wait for us. */
  readonly bytes: number | undefined
  /** Lets it freeze the tasks. */
  open(): void
  /** Its images, once it has begun. */
  images(steps?: DumpSteps): ImageSource
  /** Lets it fail, if it still waits. */
  remove(): void
}

/**
 * Waits until the criu at the other end of `socket` has sent something, or waits at pre-dump. Returns undefined, with
 * the socket closed, where it leaves without a byte or the signal comes first. Throws `TIMEOUT`, with the socket
 * closed, where neither happens for `timeoutMs`: its tasks may be frozen.
 */
export async function acceptDump(
  socket: Fd,
  gates: string,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<IncomingDump | undefined> {
  const pid = peerPid(socket)
  const gate = closedGate(gates, pid, 'pre-dump')
  const spoken = hasSpoken(socket)
  spoken.catch(() => {})
  let there = true
  const leave = (): void => {
    if (there) closeFd(socket)
    there = false
    gate.remove()
  }
  signal.addEventListener('abort', leave, { once: true })
  const over = new AbortController()
  const silent = rejectAfter(timeoutMs, 'a criu that has connected began no dump', over.signal)
  const first = await Promise.race([gate.held, spoken, silent])
    .catch((reason: unknown) => {
      leave()
      if (reason instanceof Fault && reason.code === 'TIMEOUT') throw reason
      return false
    })
    .finally(() => {
      over.abort()
      signal.removeEventListener('abort', leave)
    })
  if (first === false || !there) return void leave()
  const begun = spoken.finally(gate.remove)
  begun.catch(() => {})
  const bytes = typeof first === 'number' ? memoryOfTree(first) : undefined
  return {
    pid,
    bytes,
    open: gate.open,
    images(steps) {
      const source = new CapturedImages(socket, steps?.complete)
      async function* images(): AsyncGenerator<OpenImage> {
        await begun
        yield* source.images
      }
      return { images: images(), destroy: (reason) => source.destroy(reason) }
    },
    remove: gate.remove,
  }
}

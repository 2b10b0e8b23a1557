/**
 * A criu restore from images in memory, which can be held at post-restore.
 */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { acceptSpeaker, peerPid } from '../kernel/unix.ts'
import type { StoredImage } from '../store/memory.ts'
import type { Held } from './arrival.ts'
import { startCriu } from './criu.ts'
import { closedGate, type Gate, writeScript } from './gate.ts'
import { serve } from './serve.ts'
import { defer } from './wait.ts'
import type { WorkDir } from './workdir.ts'

export interface Restoring extends Held {
  /** Resolves when the tasks are restored and held. Never for a restore that is not to be held. */
  readonly held: Promise<void>
  /** Resolves when criu has exited 0 and has taken the images. Throws `CRIU`. */
  readonly done: Promise<void>
}

/** After criu's end, its socket's end is noticed at once. */
const TAKEN_MS = 1000

/**
 * Starts `criu restore --stream -d` on images, with its socket in `work`. `hold`: stop it at post-restore. A signal
 * takes the images away from criu, which then removes what it has restored; it is never killed half way.
 */
export function startRestoring(
  criu: string,
  criuOptions: readonly string[],
  images: ReadonlyMap<ImageName, StoredImage>,
  work: WorkDir,
  { hold, signal }: { hold: boolean; signal: AbortSignal },
): Restoring {
  const script = hold ? ['--action-script', writeScript(work.path, 'post-restore')] : []
  const run = startCriu(criu, 'restore', ['--stream', '-d', '-D', work.path, ...script, ...criuOptions])
  const [held, runs] = [defer<void>(), defer<boolean>()]
  let gate: Gate | undefined
  const stop = (): void => {
    gate?.shut()
    work.remove(signal.reason as Error)
  }
  signal.addEventListener('abort', stop)
  const serving = (async () => {
    const socket = await acceptSpeaker(work.listener)
    if (hold) {
      gate = closedGate(work.path, peerPid(socket))
      gate.held.then(held.resolve, () => {})
      gate.resumed.then(() => runs.resolve(true)).catch(() => {})
    }
    return serve(socket, async () => images, signal)
  })()
  serving.catch(() => {})
  const finish = async (): Promise<void> => {
    try {
      await run.done.catch((error: unknown) => {
        throw signal.aborted ? signal.reason : error
      })
      const served = await Promise.race([serving, setTimeout(TAKEN_MS, undefined, { ref: false })])
      if (served?.images.includes(INVENTORY) !== true) {
        throw new Fault('CRIU', 'criu restore ended without taking the images', {
          hint: 'look at the options behind --',
        })
      }
      runs.resolve(true)
    } finally {
      runs.resolve(false)
      signal.removeEventListener('abort', stop)
      gate?.remove()
    }
  }
  const done = finish()
  done.catch(() => {})
  return { held: held.promise, runs: runs.promise, done, open: () => gate?.open(), shut: () => gate?.shut() }
}

/**
 * A criu restore from images in memory, which can be held at post-restore.
 */
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { descendants, openProcess, type Process } from '../kernel/process.ts'
import { acceptSpeaker, peerPid } from '../kernel/unix.ts'
import type { Piece, StoredImage } from '../store/stored-image.ts'
import { defer } from '../stream/wait.ts'
import { closedGate, type Gate, writeScript } from './action-script.ts'
import { startCriu } from './run.ts'
import { serve } from './serve.ts'
import type { WorkDir } from './work-directory.ts'

/** A restore that can be held: by a gate on this host, or by a client over a link. */
export interface HeldRestore {
  open(): void
  shut(): void
  /** Whether the tasks run: settles after `open` or `shut`, or when CRIU fails. Rejects with `LINK` if that cannot be known. */
  readonly runs: Promise<boolean>
}

export interface RunningRestore extends HeldRestore {
  /** Resolves when the tasks are restored and held. Never for a restore that is not to be held. */
  readonly held: Promise<void>
  /** Resolves when criu has exited 0 and has taken the images. Throws `CRIU`. */
  readonly done: Promise<void>
}

export interface RestoreHold {
  /** What is written on the gate, for who finds it when we are gone. */
  label: string
  /** Where the gate is. */
  gates: string
}

/** After criu's end, its socket's end is noticed at once. */
const TAKEN_MS = 1000

/**
 * Starts `criu restore --stream -d` on images, with its socket in `work`. `hold`: stop it at post-restore. A signal
 * takes the images away from criu, which then removes what it has restored; it is never killed half way, and once it was let
 * go a signal comes too late. Where somebody else
 * kills it, its tasks would wait for it for ever, and are killed here.
 */
export function startRestore(
  criu: string,
  criuOptions: readonly string[],
  images: ReadonlyMap<ImageName, StoredImage>,
  work: WorkDir,
  { hold, signal, onTaken }: { hold: RestoreHold | undefined; signal: AbortSignal; onTaken?: (piece: Piece) => void },
): RunningRestore {
  const script = hold !== undefined ? ['--action-script', writeScript(hold.gates, 'post-restore')] : []
  const run = startCriu(criu, 'restore', ['--stream', '-d', '-D', work.path, ...script, ...criuOptions])
  const [held, runs] = [defer<void>(), defer<boolean>()]
  let gate: Gate | undefined
  let criuPid = 0
  const tasks = new Map<number, Process>()
  const noteTasks = (): void => {
    for (const pid of descendants(criuPid)) {
      const task = tasks.has(pid) ? undefined : openProcess(pid)
      if (task !== undefined) tasks.set(pid, task)
    }
  }
  let opened = false
  const taking = new AbortController()
  const stop = (): void => {
    if (opened) return
    gate?.shut()
    work.remove(signal.reason as Error)
    taking.abort(signal.reason)
  }
  const open = (): void => {
    opened = true
    gate?.open()
  }
  signal.addEventListener('abort', stop)
  const serving = (async () => {
    const socket = await acceptSpeaker(work.listener)
    criuPid = peerPid(socket)
    if (hold !== undefined) {
      gate = closedGate(hold.gates, criuPid, 'post-restore')
      gate.label(hold.label)
      const atGate = (): void => {
        noteTasks()
        held.resolve()
      }
      gate.held.then(atGate, () => {})
      gate.resumed.then(() => runs.resolve(true)).catch(() => {})
    }
    const taken = async (): Promise<typeof images> => {
      noteTasks()
      return images
    }
    return serve(socket, taken, { signal: taking.signal, ...(onTaken && { onTaken }) })
  })()
  serving.catch(() => {})
  const finish = async (): Promise<void> => {
    try {
      await run.done.catch((error: unknown) => {
        throw taking.signal.aborted ? signal.reason : error
      })
      const served = await Promise.race([serving, setTimeout(TAKEN_MS, undefined, { ref: false })])
      if (served?.images.includes(INVENTORY) !== true) {
        throw new Fault('CRIU', 'criu restore ended without taking the images', {
          hint: 'look at the options behind --',
        })
      }
      runs.resolve(true)
    } catch (error) {
      runs.resolve(false)
      if (!(await runs.promise)) for (const task of tasks.values()) task.kill()
      throw error
    } finally {
      for (const task of tasks.values()) task.close()
      signal.removeEventListener('abort', stop)
      gate?.remove()
      if (hold !== undefined) rmSync(join(hold.gates, 'post-restore'), { force: true })
    }
  }
  const done = finish()
  done.catch(() => {})
  return { held: held.promise, runs: runs.promise, done, open, shut: () => gate?.shut() }
}

/** Runs criu restore from images in memory, and holds it at post-restore if asked. */
import { rmSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import type { Process } from '../kernel/process.ts'
import { acceptSpeaker, peerPid } from '../kernel/unix.ts'
import type { Pool } from '../store/pool.ts'
import type { Piece, StoredImage } from '../store/stored-image.ts'
import { defer } from '../stream/wait.ts'
import { closedGate, type Gate, writeScript } from './action-script.ts'
import { lostByStream, writeImageFiles } from './image-files.ts'
import { restoredTasks } from './process-tree.ts'
import { startCriu } from './run.ts'
import { type Served, serve } from './serve.ts'
import type { WorkDir } from './work-directory.ts'

/** A restore that can be held: by a gate on this host, or by a client over a link. */
export interface HeldRestore {
  open(): void
  shut(): void
  /**
   * Whether the tasks run: settles after `open` or `shut`, or when CRIU fails. Rejects with `LINK` if that cannot be
   * known.
   */
  readonly runs: Promise<boolean>
}

export type FollowedRestore = ReturnType<typeof followRestore>

/** Follows the restore of the criu, started by another process, that is or will be at `gate`. */
export function followRestore(gate: Gate, { pid, ended }: Pick<Process, 'pid' | 'ended'>) {
  const tasks = restoredTasks(pid)
  const runs = Promise.race([gate.resumed.then(() => true), ended.then(() => false)])
  runs.then(tasks.settle, () => {})
  return {
    open: gate.open,
    shut: gate.shut,
    runs,
    /**
     * Notes the tasks that criu holds, to be called when it is at the gate. They are killed if they do not run in the
     * end.
     */
    noteTasks: tasks.note,
  }
}

export interface RestoreHold {
  /** Is written on the gate, for the process that finds it when this one is gone. */
  label: string
  /** The directory of the gate. */
  gates: string
}

interface RestoreControl {
  /** Stops criu at post-restore, if given. */
  hold: RestoreHold | undefined
  signal: AbortSignal
  /** Counts the files of a restore that is not by `--stream`. */
  pool: Pool
  /** Is called with every piece that criu has taken. */
  onTaken?: (piece: Piece) => void
}

type Images = ReadonlyMap<ImageName, StoredImage>

/** How long the end of criu's socket may take to be noticed after the end of criu. */
const TAKEN_MS = 1000
/** How often the tasks that criu has made are looked at, until it holds them. */
const NOTE_MS = 20

/**
 * Runs `criu restore -d` on images: by `--stream`, with its socket in `work`, or from files where a stream would lose
 * something. A signal takes the images away from criu, or fails it at post-restore, and it removes what it has
 * restored; criu itself is not killed, and once it was let go a signal comes too late. Where another process kills
 * criu, its tasks would wait for it for ever, and are killed here.
 */
export class RunningRestore implements HeldRestore {
  readonly #held = defer<void>()
  readonly #runs = defer<boolean>()
  /** Resolves when the tasks are restored and held. Never for a restore that is not to be held. */
  readonly held = this.#held.promise
  readonly runs = this.#runs.promise
  /** Resolves when criu has exited 0 and has taken the images. Throws `CRIU`, and like `writeImageFiles`. */
  readonly done: Promise<void>
  readonly #criu: string
  readonly #options: readonly string[]
  readonly #images: Images
  readonly #work: WorkDir
  readonly #control: RestoreControl
  /** Aborted when the images are taken away. */
  readonly #taking = new AbortController()
  /** From the moment when criu is known. */
  #gate: Gate | undefined
  #tasks: ReturnType<typeof restoredTasks> | undefined
  /** The action script, once it is written. */
  #script: string | undefined
  #opened = false

  /** Starts `criu` with `options`. */
  constructor(criu: string, options: readonly string[], images: Images, work: WorkDir, control: RestoreControl) {
    this.#criu = criu
    this.#options = options
    this.#images = images
    this.#work = work
    this.#control = control
    control.signal.addEventListener('abort', this.#onSignal, { once: true })
    if (control.signal.aborted) this.#onSignal()
    this.done = this.#finish()
    this.done.catch(() => {})
  }

  open(): void {
    this.#opened = true
    this.#gate?.open()
  }

  shut(): void {
    this.#gate?.shut()
  }

  readonly #onSignal = (): void => {
    if (this.#opened) return
    const { reason } = this.#control.signal
    this.#gate?.shut()
    this.#work.remove(reason as Error)
    this.#taking.abort(reason)
  }

  async #finish(): Promise<void> {
    const { signal } = this.#control
    try {
      const restored = lostByStream(this.#images) === undefined ? this.#byStream() : this.#byFiles()
      await restored.catch((error: unknown) => {
        throw this.#taking.signal.aborted ? signal.reason : error
      })
      this.#runs.resolve(true)
    } catch (error) {
      // A criu that was killed at its end may have let them run: its script says so.
      if (this.#opened) await Promise.race([this.runs, setTimeout(TAKEN_MS, undefined, { ref: false })])
      this.#runs.resolve(false)
      throw error
    } finally {
      this.#tasks?.settle(await this.runs)
      signal.removeEventListener('abort', this.#onSignal)
      this.#gate?.remove()
      if (this.#script !== undefined) rmSync(this.#script, { force: true })
    }
  }

  async #byStream(): Promise<void> {
    const { hold } = this.#control
    const script = hold === undefined ? [] : this.#writeScript(hold.gates)
    const run = startCriu(this.#criu, 'restore', ['--stream', '-d', '-D', this.#work.path, ...script, ...this.#options])
    const serving = this.#serve()
    serving.catch(() => {})
    await run.done
    const served = await Promise.race([serving, setTimeout(TAKEN_MS, undefined, { ref: false })])
    if (served?.images.includes(INVENTORY) !== true) {
      throw new Fault('CRIU', 'criu restore ended without taking the images', {
        hint: 'look at the options behind --',
      })
    }
  }

  async #serve(): Promise<Served> {
    const { hold, onTaken } = this.#control
    const socket = await acceptSpeaker(this.#work.listener)
    const pid = peerPid(socket)
    const tasks = restoredTasks(pid)
    this.#tasks = tasks
    if (hold !== undefined) this.#holdAt(closedGate(hold.gates, pid, 'post-restore'), tasks)
    const choose = async () => {
      tasks.note()
      return this.#images
    }
    return serve(socket, choose, { signal: this.#taking.signal, ...(onTaken && { onTaken }) })
  }

  /** A gate is always there, for a signal to shut: nothing else takes files away from a criu. */
  async #byFiles(): Promise<void> {
    const { hold, pool } = this.#control
    const files = await writeImageFiles(this.#images, pool, this.#taking.signal)
    const gates = hold?.gates ?? this.#work.path
    let noting: NodeJS.Timeout | undefined
    try {
      // What criu writes by a relative path lies where it does with a stream.
      const options = ['-d', '-D', files.path, '-W', this.#work.path, ...this.#writeScript(gates), ...this.#options]
      const run = startCriu(this.#criu, 'restore', options, [files.lock])
      const tasks = restoredTasks(run.pid)
      this.#tasks = tasks
      noting = setInterval(tasks.note, NOTE_MS)
      const gate = closedGate(gates, run.pid, 'post-restore')
      // CRIU has read all images before it comes to the gate.
      gate.held
        .then(() => {
          clearInterval(noting)
          files.remove()
        })
        .catch(() => {})
      if (hold === undefined) {
        this.#gate = gate
        gate.held
          .then(tasks.note)
          .then(gate.open)
          .catch(() => {})
      } else this.#holdAt(gate, tasks)
      await run.done
    } finally {
      clearInterval(noting)
      files.remove()
    }
  }

  #writeScript(directory: string): string[] {
    this.#script = writeScript(directory, 'post-restore')
    return ['--action-script', this.#script]
  }

  #holdAt(gate: Gate, tasks: ReturnType<typeof restoredTasks>): void {
    this.#gate = gate
    gate.label(this.#control.hold?.label ?? '')
    const onHeld = (): void => {
      tasks.note()
      // A gate that was shut lets nothing run.
      if (!this.#taking.signal.aborted) this.#held.resolve()
    }
    gate.held.then(onHeld).catch(() => {})
    gate.resumed.then(() => this.#runs.resolve(true)).catch(() => {})
  }
}

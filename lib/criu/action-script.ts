/**
 * The action scripts for CRIU, and the gates at which they hold it: CRIU waits there until we decide how it goes on.
 *
 * CRIU runs its action script at `pre-dump`, before it freezes anything; at `post-dump`, when every image is written
 * and the tasks are still frozen; and at `post-restore`, when the tasks are restored and do not run yet. If the script
 * fails, the dumped tasks run on, or the restored ones are removed (seen with 4.1.1 to 4.3); at `pre-dump` nothing was
 * touched. Our script finds its gate by the process number of its criu, which we know as the peer of criu's socket. It
 * writes into a FIFO that criu is held, waits for a lock that we hold, and then looks for a file that we made:
 *
 *     open()           rename the lock to go,   unlock   exit 0: dumped tasks die, restored ones run
 *     shut()           rename the lock to drop, unlock   exit 1: dumped tasks run on, restored ones are removed
 *     we are killed    the kernel unlocks                dumps: exit 1; post-restore: waits on for one of the
 *                                                        files, for the copy may be the only one
 *     we are stopped   the lock stays                    dumps: exit 1 after a while; post-restore: waits on
 *
 * The time that an honest holder needs has no limit, for its link may be slow. So the script of a dump asks through the
 * FIFO once in a while whether the holder is alive, and fails if it gets no answer: the tasks must not stay frozen for
 * ever.
 *
 * The lock and the FIFO get the names that the script looks for only when the lock is locked and the FIFO is opened. A
 * word that is written into a FIFO before it has a reader is lost, and then each side would wait for the other.
 *
 * A shell and flock(1) (util-linux, on every Debian) take 1.7 ms of the freeze, where starting a node would take 60 ms.
 * Each other program in the script, such as dirname(1) or a command for flock to run, costs another millisecond.
 */
import { closeSync, existsSync, openSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { type Fd, makeFifo, openFifo, tryLock } from '../kernel/fd.ts'
import { startTime } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readSome } from '../kernel/transfer.ts'
import { defer } from '../stream/wait.ts'

export type Moment = 'pre-dump' | 'post-dump' | 'post-restore'

export interface Gate {
  /**
   * Resolves when criu waits at the gate, with the root of its tree, 0 if unknown; rejects when the gate is removed
   * before.
   */
  readonly held: Promise<number>
  /** Resolves when the restored tasks run (`post-resume`); rejects when the gate is removed before. */
  readonly resumed: Promise<void>
  /** Writes a label on the gate, for the process that recovers it when this one is gone. */
  label(text: string): void
  /** Lets criu go on. */
  open(): void
  /** Makes the script fail. Has no effect after `open`; nor has `open` after `shut`. */
  shut(): void
  /** Shuts the gate and removes its files: to be called when criu has ended. */
  remove(): void
}

/** Seconds that a holder may take to answer the script of a dump: a busy one takes some milliseconds. */
const ANSWER_S = 60

/**
 * Writes the script for `criu --action-script` into `directory`, and returns its path. The script for `post-dump` holds
 * criu at `pre-dump` too. The script gets its name when it is complete: half a script may exit 0, and the tasks would
 * die. `answerS`: see `ANSWER_S`. Throws `IO`.
 */
export function writeScript(directory: string, moment: Exclude<Moment, 'pre-dump'>, answerS = ANSWER_S): string {
  const path = join(directory, moment)
  const fresh = unfinished(path)
  return makeFile(() => {
    rmSync(fresh, { force: true })
    writeFileSync(fresh, moment === 'post-dump' ? postDump(answerS) : postRestore, { mode: 0o700, flag: 'wx' })
    renameSync(fresh, path)
    return path
  }, fresh)
}

/** The name of a file until it is ready, and is renamed to `path`. */
function unfinished(path: string): string {
  return `${path}.new`
}

/** The FIFOs of the gates of this process. */
const gates = new Set<string>()

/**
 * Makes a closed gate in `directory` at this moment of the criu with the number `pid`. A second gate for the same
 * number is never reached: criu in a pid namespace that is hidden from us all have the number 0. Throws `IO`.
 */
export function closedGate(directory: string, pid: number, moment: Moment): Gate {
  const paths = pathsOf(directory, pid, moment)
  if (gates.has(paths.held)) return unreachedGate()
  clean(paths)
  const lock = makeFile(() => openSync(unfinished(paths.lock), 'wx', 0o600))
  let fifo: Fd | undefined
  try {
    if (!tryLock(lock)) throw new Fault('IO', `cannot lock ${unfinished(paths.lock)}`)
    makeFifo(unfinished(paths.held))
    fifo = openFifo(unfinished(paths.held))
    // The lock comes first: the script knows by the FIFO that there is a gate.
    for (const path of [paths.lock, paths.held]) renameSync(unfinished(path), path)
    return gateAt(paths, lock, fifo)
  } catch (error) {
    if (fifo !== undefined) closeFd(fifo)
    closeSync(lock)
    clean(paths)
    throw error
  }
}

/** A gate at which criu still waits, though the holder is gone. */
export type OrphanedGate = ReturnType<typeof recoverGates>[number]

/**
 * Takes over the gates of restores in `directory` that no process holds, and whose label (what the holder wrote on the
 * gate) is wanted. Without `isWanted` also removes the gates whose criu is gone.
 */
export function recoverGates(directory: string, isWanted?: (label: string) => boolean) {
  return readdirSync(directory).flatMap((name) => {
    const pid = Number(/^(\d+)\.post-restore\.held$/.exec(name)?.[1])
    const paths = pathsOf(directory, pid, 'post-restore')
    if (Number.isNaN(pid) || gates.has(paths.held)) return []
    if (startTime(pid) === undefined || !existsSync(paths.lock)) {
      // Its criu may be alive where it cannot be seen from here.
      if (isWanted === undefined) clean(paths)
      return []
    }
    const label = readFileSync(paths.lock, 'utf8')
    if (label === '' || isWanted?.(label) === false) return []
    const lock = openSync(paths.lock, 'r')
    if (!tryLock(lock)) {
      closeSync(lock)
      return []
    }
    return [{ pid, label, gate: gateAt(paths, lock, openFifo(paths.held)) }]
  })
}

/** Removes the gates of dumps in `directory` whose criu is gone: killed holders left them. */
export function clearGates(directory: string): void {
  for (const name of readdirSync(directory)) {
    const [, pid, moment] = /^(\d+)\.(pre-dump|post-dump)\.(?:held|lock|go|drop|here)(?:\.new)?$/.exec(name) ?? []
    if (moment === undefined || startTime(Number(pid)) !== undefined) continue
    clean(pathsOf(directory, Number(pid), moment as Moment))
  }
}

/** The files of a gate. */
type Paths = ReturnType<typeof pathsOf>

function pathsOf(directory: string, pid: number, moment: Moment) {
  const file = (kind: string): string => join(directory, `${pid}.${moment}.${kind}`)
  return { held: file('held'), lock: file('lock'), go: file('go'), drop: file('drop'), here: file('here') }
}

function clean(paths: Paths): void {
  for (const path of Object.values(paths)) {
    for (const name of [path, unfinished(path)]) rmSync(name, { force: true })
  }
}

function gateAt(paths: Paths, lock: number, fifo: Fd): Gate {
  gates.add(paths.held)
  let decided = false
  const decide = (kind: 'go' | 'drop'): void => {
    if (decided) return
    decided = true
    // A rename works on a full disk too.
    try {
      renameSync(paths.lock, paths[kind])
    } finally {
      closeSync(lock)
    }
  }
  let removed = false
  const [held, resumed] = [defer<number>(), defer<void>()]
  const listen = async (): Promise<void> => {
    const words = Buffer.alloc(LONGEST_WORDS)
    for (;;) {
      const text = words.toString('latin1', 0, await readSome(fifo, words))
      held.resolve(Number(/^held (\d+)/.exec(text)?.[1] ?? 0))
      if (text.includes(ASKS)) makeFile(() => writeFileSync(paths.here, ''))
      if (text.includes(RESUMED)) return resumed.resolve()
    }
  }
  listen().catch((reason: unknown) => {
    held.reject(reason)
    resumed.reject(reason)
  })
  return {
    held: held.promise,
    resumed: resumed.promise,
    label: (text) => makeFile(() => writeFileSync(paths.lock, text)),
    open: () => decide('go'),
    shut: () => decide('drop'),
    remove() {
      if (removed) return
      removed = true
      // The directory may be gone already.
      try {
        decide('drop')
      } catch {}
      closeFd(fifo)
      clean(paths)
      gates.delete(paths.held)
    },
  }
}

function unreachedGate(): Gate {
  const never = new Promise<never>(() => {})
  return { held: never, resumed: never, label() {}, open() {}, shut() {}, remove() {} }
}

/** Throws `IO` where a file cannot be written, as on a full disk; `half` is removed then. */
function makeFile<Result>(make: () => Result, half?: string): Result {
  try {
    return make()
  } catch (cause) {
    if (half !== undefined) rmSync(half, { force: true })
    throw new Fault('IO', `cannot write a file for criu (${(cause as NodeJS.ErrnoException).code})`, { cause })
  }
}

/** The script of a dump writes this into the FIFO when it has waited for long, to learn whether the holder is alive. */
const ASKS = 'asks'
/** The script writes this into the FIFO when the tasks run. */
const RESUMED = 'resumed'
/** Bytes: more than one script writes. */
const LONGEST_WORDS = 64

const head = (moment: Moment, others = ''): string => `#!/bin/sh
# For criu --action-script: holds criu at ${moment} until criu-ferry has decided.
cd "\${0%/*}/" || exit 1
gate=$PPID.${moment}
case $CRTOOLS_SCRIPT_ACTION in
${moment}) ;;${others}
post-resume) [ -p $gate.held ] && echo ${RESUMED} 1<>$gate.held; exit 0 ;;
*) exit 0 ;;
esac
[ -p $gate.held ] || { echo "${moment}: criu-ferry does not know this criu ($PPID)" >&2; exit 1; }
echo held $CRTOOLS_INIT_PID 1<>$gate.held`

/** Waits a moment, until the gate is there; where there is none, nothing holds criu before the dump. */
const preDump = `
pre-dump) gate=$PPID.pre-dump
  tries=0; until [ -p $gate.held ] || [ $tries -ge 20 ]; do sleep 0.05; tries=$((tries + 1)); done
  [ -p $gate.held ] || exit 0 ;;`

/** The exit code of a flock that reached its limit: any other one means that it does not work. */
const LATE = 75

const postDump = (answerS: number): string => `${head('post-dump', preDump)}
asked=
while flock -s -w ${answerS} -E ${LATE} 9 9>>$gate.lock; [ $? = ${LATE} ]; do
  if [ -n "$asked" ] && [ ! -e $gate.here ]; then
    echo "$CRTOOLS_SCRIPT_ACTION: criu-ferry holds this criu and does not answer" >&2
    break
  fi
  rm -f $gate.here
  asked=yes
  echo ${ASKS} 1<>$gate.held
done
[ -e $gate.go ]
`

/**
 * Waits without a limit: the copy may be the only one, and the next holder recovers it. A gate that has no label is
 * recovered by nobody.
 */
const postRestore = `${head('post-restore')}
while kill -0 $PPID && [ -p $gate.held ]; do
  flock -s 9 9>>$gate.lock
  [ -e $gate.go ] && exit 0
  [ -e $gate.drop ] && exit 1
  [ -s $gate.lock ] || { [ -e $gate.go ]; exit; }
  sleep 1
done
exit 1
`

/**
 * The gate: a CRIU waits at a moment of its work until we say how it goes on.
 *
 * CRIU runs its action scripts at `pre-dump`, before it freezes anything, at `post-dump`, when every image is written and the tasks are still frozen, and at `post-restore`, when
 * the tasks are restored and do not run yet; if the script fails, the tasks run on, or the restored ones are removed (seen
 * with 4.1.1 to 4.3), and after `pre-dump` nothing was touched. Our scripts find us by the number of their criu, which is that of the process at the other end of its
 * socket, tell us by a FIFO that they are there, wait for a lock that we hold, and then look for a file that we made:
 *
 *     open()            rename the lock to go,   drop the lock     exit 0: the dumped tasks die, the restored ones run
 *     shut()            rename the lock to drop, drop the lock   exit 1: the dumped tasks run on, the restored ones go
 *     we were killed    the kernel drops the lock                    dumps: exit 1; post-restore: waits on for one of
 *                                                                    the names, for the copy may be the only one
 *     we were stopped   nothing: the lock stays                      dumps: exit 1 after a while; post-restore: waits on
 *
 * How long an honest holder takes nobody can say, for its link may be slow. So the script of a dump asks by the FIFO once in a
 * while, and leaves a holder that does not answer: it must not keep the tasks frozen for ever.
 *
 * What the script looks for has its name only when it is ready: the lock is made and locked, and the FIFO made and opened, under
 * another one. A word that is written into a FIFO before its reader is there is lost, and then each waits for the other.
 *
 * A shell and flock(1) (util-linux, on every Debian) take 1.7 ms of the freeze, where starting a node would take 60: each
 * other program that the script starts, such as dirname(1) or a command for flock to run, costs one more.
 */
import { closeSync, existsSync, openSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { asFd, check, type Fd } from '../kernel/fd.ts'
import { flock, LOCK_EX, LOCK_NB, mkfifo, O_CLOEXEC, O_NONBLOCK, O_RDWR, open } from '../kernel/libc.ts'
import { startTime } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readSome } from '../kernel/transfer.ts'
import { defer } from '../stream/wait.ts'

export type Moment = 'pre-dump' | 'post-dump' | 'post-restore'

export interface Gate {
  /** Resolves with the first task of its tree, 0 if unknown, when the criu waits at the gate; rejects when the gate is removed before. */
  readonly held: Promise<number>
  /** Resolves when the restored tasks run (`post-resume`); rejects when the gate is removed before. */
  readonly resumed: Promise<void>
  /** Writes something on the gate, for who finds it when we are gone. */
  label(text: string): void
  /** Lets it go on. */
  open(): void
  /** Makes its script fail. Without effect after `open`, as `open` is after this. */
  shut(): void
  /** Takes away its files: when the criu has ended. Shuts it first. */
  remove(): void
}

/** How long a holder may take to answer the script of a dump, seconds: a busy one takes some milliseconds. */
const ANSWER_S = 60

/**
 * Writes the script for `criu --action-script` into `directory`, and returns its path. That of `post-dump` stops at `pre-dump` too. It has
 * its name when it is whole: half a script may exit 0, and the tasks would die. `answerS`: as `ANSWER_S`. Throws `IO`.
 */
export function writeScript(directory: string, moment: Exclude<Moment, 'pre-dump'>, answerS = ANSWER_S): string {
  const path = join(directory, moment)
  const fresh = beside(path)
  return made(() => {
    rmSync(fresh, { force: true })
    writeFileSync(fresh, moment === 'post-dump' ? postDump(answerS) : postRestore, { mode: 0o700, flag: 'wx' })
    renameSync(fresh, path)
    return path
  }, fresh)
}

/** The name under which something is made that gets the name `path` when it is ready. */
function beside(path: string): string {
  return `${path}.new`
}

/** The gates of this process. */
const gates = new Set<string>()

/**
 * A closed gate in `directory` at this moment of the criu with the number `pid`. A second one for the same number, which a client that we
 * cannot tell from another has (number 0, from a pid namespace that is hidden from us), is never held. Throws `IO`.
 */
export function closedGate(directory: string, pid: number, moment: Moment): Gate {
  const { lock: path, held } = names(directory, pid, moment)
  if (gates.has(held)) return noGate()
  clean(directory, pid, moment)
  const lock = made(() => openSync(beside(path), 'wx', 0o600))
  let fifo: Fd | undefined
  try {
    check(flock(asFd(lock), LOCK_EX | LOCK_NB), 'flock')
    check(mkfifo(beside(held), 0o600), 'mkfifo')
    fifo = openFifo(beside(held))
    // The lock first: by the FIFO the script sees that there is a gate.
    renameSync(beside(path), path)
    renameSync(beside(held), held)
    return gateAt(directory, pid, moment, lock, fifo)
  } catch (error) {
    if (fifo !== undefined) closeFd(fifo)
    closeSync(lock)
    clean(directory, pid, moment)
    throw error
  }
}

function openFifo(path: string): Fd {
  return asFd(check(open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0), 'open'))
}

/** A gate whose holder was killed, at which its criu still waits. */
export interface OrphanedGate {
  pid: number
  gate: Gate
  /** What the holder wrote on it. */
  label: string
}

/**
 * The gates of restores in `directory` at which somebody else's criu waits, and whose label is wanted; where all are, those of
 * criu that are gone are cleaned away.
 */
export function recoverGates(directory: string, isWanted?: (label: string) => boolean): OrphanedGate[] {
  const moment = 'post-restore'
  return readdirSync(directory).flatMap((name) => {
    const pid = Number(/^(\d+)\.post-restore\.held$/.exec(name)?.[1])
    if (Number.isNaN(pid) || gates.has(names(directory, pid, moment).held)) return []
    const { lock: path } = names(directory, pid, moment)
    if (startTime(pid) === undefined || !existsSync(path)) {
      // A criu that cannot be seen from here may be alive all the same.
      if (isWanted === undefined) clean(directory, pid, moment)
      return []
    }
    const label = readFileSync(path, 'utf8')
    if (label === '' || isWanted?.(label) === false) return []
    const lock = openSync(path, 'r')
    if (flock(asFd(lock), LOCK_EX | LOCK_NB) < 0) {
      closeSync(lock)
      return []
    }
    const fifo = openFifo(names(directory, pid, moment).held)
    return [{ pid, label, gate: gateAt(directory, pid, moment, lock, fifo) }]
  })
}

/** Takes away the gates of dumps in `directory` whose criu is gone: their holder was killed. */
export function clearGates(directory: string): void {
  for (const name of readdirSync(directory)) {
    const [, pid, moment] = /^(\d+)\.(pre-dump|post-dump)\.(?:held|lock|go|drop|here)(?:\.new)?$/.exec(name) ?? []
    if (moment === undefined || startTime(Number(pid)) !== undefined) continue
    clean(directory, Number(pid), moment as Moment)
  }
}

function names(directory: string, pid: number, moment: Moment) {
  const file = (kind: string): string => join(directory, `${pid}.${moment}.${kind}`)
  return { held: file('held'), lock: file('lock'), go: file('go'), drop: file('drop'), here: file('here') }
}

function clean(directory: string, pid: number, moment: Moment): void {
  for (const path of Object.values(names(directory, pid, moment))) {
    for (const either of [path, beside(path)]) rmSync(either, { force: true })
  }
}

function gateAt(directory: string, pid: number, moment: Moment, lock: number, fifo: Fd): Gate {
  const paths = names(directory, pid, moment)
  gates.add(paths.held)
  let decided = false
  const decide = (kind: 'go' | 'drop'): void => {
    if (decided) return
    decided = true
    // Renamed, for a full disk must not keep us from it.
    try {
      renameSync(paths.lock, paths[kind])
    } finally {
      closeSync(lock)
    }
  }
  let there = true
  const [held, resumed] = [defer<number>(), defer<void>()]
  const listen = async (): Promise<void> => {
    const words = Buffer.alloc(LONGEST_WORDS)
    for (;;) {
      const said = words.toString('latin1', 0, await readSome(fifo, words))
      held.resolve(Number(/^held (\d+)/.exec(said)?.[1] ?? 0))
      if (said.includes(ASKS)) made(() => writeFileSync(paths.here, ''))
      if (said.includes(RESUMED)) return resumed.resolve()
    }
  }
  listen().catch((reason: unknown) => {
    held.reject(reason)
    resumed.reject(reason)
  })
  return {
    held: held.promise,
    resumed: resumed.promise,
    label: (text) => made(() => writeFileSync(paths.lock, text)),
    open: () => decide('go'),
    shut: () => decide('drop'),
    remove() {
      if (!there) return
      there = false
      // Its directory may be gone before it.
      try {
        decide('drop')
      } catch {}
      closeFd(fifo)
      clean(directory, pid, moment)
      gates.delete(paths.held)
    },
  }
}

function noGate(): Gate {
  const never = new Promise<never>(() => {})
  return { held: never, resumed: never, label() {}, open() {}, shut() {}, remove() {} }
}

/** A full disk is an `IO`; `half`: a file that is taken away then. */
function made<Result>(make: () => Result, half?: string): Result {
  try {
    return make()
  } catch (cause) {
    if (half !== undefined) rmSync(half, { force: true })
    throw new Fault('IO', `cannot write a file for criu (${(cause as NodeJS.ErrnoException).code})`, { cause })
  }
}

/** What the script of a dump writes into the FIFO when it has waited for long, and wants to know whether anybody is there. */
const ASKS = 'asks'
/** What the script writes into the FIFO when the tasks run. */
const RESUMED = 'resumed'
/** All that one script writes. */
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

/** Whoever reads criu's socket may need a moment to find it there; it may also want nothing before the dump. */
const preDump = `
pre-dump) gate=$PPID.pre-dump
  tries=0; until [ -p $gate.held ] || [ $tries -ge 20 ]; do sleep 0.05; tries=$((tries + 1)); done
  [ -p $gate.held ] || exit 0 ;;`

/** That a limit was reached is told from a flock that cannot be used. */
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

/** Without an end: the copy may be the only one, and the next holder takes it over. */
const postRestore = `${head('post-restore')}
while kill -0 $PPID && [ -p $gate.held ]; do
  flock -s 9 9>>$gate.lock
  [ -e $gate.go ] && exit 0
  [ -e $gate.drop ] && exit 1
  sleep 1
done
exit 1
`

/**
 * A task that is dying for as long as a test likes: the first of a pid namespace ends only when the last of that
 * namespace is taken away by its parent, who is outside and waits until it is told to.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { eventually } from './run.ts'

export interface Dying {
  pid: number
  /** It ends by itself, or is killed; either way it is not gone yet. */
  exit(): void
  kill(): void
  /** Lets it be gone, whatever it does. */
  release(): Promise<void>
}

const started = new Set<ChildProcess>()

/** Ends whatever was started here: for a test that fails. */
export function endStarted(): void {
  for (const child of started) child.kill('SIGKILL')
}

function kept<Child extends ChildProcess>(child: Child): Child {
  started.add(child)
  child.once('exit', () => started.delete(child))
  return child
}

export function startSleeper(): ChildProcess & { pid: number } {
  return kept(spawn('sleep', ['1000'])) as ChildProcess & { pid: number }
}

/** A process whose parent does not wait for it: when it ends it stays a zombie. */
export async function startOrphan(): Promise<{ pid: number; parent: number }> {
  const shell = kept(
    spawn('sh', ['-c', 'sleep 1000 & echo $!; exec sleep 1000'], { stdio: ['ignore', 'pipe', 'ignore'] }),
  )
  const [line] = (await once(shell.stdout, 'data')) as [Buffer]
  return { pid: Number(line.toString()), parent: shell.pid as number }
}

export async function startDying(): Promise<Dying> {
  const first = `perl -e '$SIG{USR1} = sub { exit }; $| = 1; print "ready\\n"; sleep 1000 while 1'`
  const keeper = `perl -e '<STDIN>; 1 while wait > 0'`
  const script = `${first} & echo $!; sleep 0 & exec ${keeper}`
  const child = kept(spawn('unshare', ['--pid', 'sh', '-c', script], { stdio: ['pipe', 'pipe', 'inherit'] }))
  const exited = once(child, 'exit')
  let said = ''
  child.stdout.on('data', (chunk: Buffer) => {
    said += chunk.toString()
  })
  await eventually(() => said.includes('ready') || undefined, 'a task in a namespace')
  const pid = Number(/^\d+$/m.exec(said)?.[0])
  return {
    pid,
    exit: () => void process.kill(pid, 'SIGUSR1'),
    kill: () => void process.kill(pid, 'SIGKILL'),
    async release() {
      if (child.exitCode !== null) return
      child.stdin.end()
      await exited
    },
  }
}

/**
 * A perl that traces the process `pid`, as criu does while it dumps. PTRACE_SEIZE has another number on other machines.
 */
export async function startTracer(pid: number, options = 0): Promise<{ pid: number; end: () => Promise<unknown> }> {
  const code = `syscall(101, 0x4206, ${pid}, 0, ${options}) == 0 or die; $| = 1; print "seized\\n"; sleep 1000`
  const tracer = kept(spawn('perl', ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] }))
  await once(tracer.stdout, 'data')
  return {
    pid: tracer.pid as number,
    end() {
      const exited = once(tracer, 'exit')
      tracer.kill('SIGKILL')
      return exited
    },
  }
}

/** For the number in `startTracer`. */
export const noTracer = process.arch === 'x64' ? undefined : 'the number of ptrace is known for x86-64 here'

/**
 * Links to a shell command: we write to its stdin and read from its stdout; its stderr is ours.
 *
 * The command stays in our process group, so that an ssh can ask for a password at the terminal. A ctrl-C there is
 * meant for us: the command ignores it, and we end it when the verdict is delivered.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import type net from 'node:net'
import { setTimeout } from 'node:timers/promises'
import { catchesTerm, childrenOf } from '../kernel/process.ts'
import { linkOverSocket } from './endpoint.ts'
import type { Link } from './link.ts'
import { readableLink } from './node-link.ts'

/** How long a command may take to exit once its link is destroyed: it may still have to print why. */
const EXIT_MS = 3000
/** How long it may take after SIGTERM. */
const TERM_MS = 500

/** Links over `command`, which is started for each of them. */
export function openShellLinks(command: string) {
  const running = new Map<ChildProcess, Link>()
  return {
    /** Starts the command once more. Throws the signal's reason if that is aborted already. */
    async connect(signal: AbortSignal): Promise<Link> {
      signal.throwIfAborted()
      const child = spawn('sh', ['-c', `trap '' HUP INT QUIT\n${command}`], { stdio: ['pipe', 'pipe', 'inherit'] })
      child.on('error', () => {})
      child.once('exit', () => running.delete(child))
      const stdin = linkOverSocket(child.stdin as net.Socket, '--via')
      const stdout = readableLink(child.stdout, '--via')
      const link: Link = {
        inlet: stdout.inlet,
        outlet: stdin.outlet,
        duplex: true,
        peer: '--via',
        destroy(reason) {
          stdin.destroy(reason)
          stdout.destroy(reason)
        },
      }
      if (child.pid !== undefined) running.set(child, link)
      return link
    },
    /** Waits until every command that was started has exited, and terminates those that do not. */
    async end(): Promise<void> {
      await Promise.all([...running].map(([child, link]) => endOne(child, link)))
    },
  }
}

async function endOne(child: ChildProcess, link: Link): Promise<void> {
  const exited = once(child, 'exit')
  link.destroy()
  if ((await Promise.race([exited, setTimeout(EXIT_MS, 'stays', { ref: false })])) !== 'stays') return
  terminate(child.pid ?? 0)
  await Promise.race([exited, setTimeout(TERM_MS)])
}

/**
 * Sends SIGTERM to a process and to what it started. A process that catches the signal ends its own children in
 * order: below a target they may be the only copy.
 */
function terminate(pid: number): void {
  const children = catchesTerm(pid) ? [] : childrenOf(pid)
  try {
    process.kill(pid, 'SIGTERM')
  } catch {}
  for (const child of children) terminate(child)
}

/**
 * A shell command as the other end of a link: it is spoken to at its stdin and stdout; its stderr is ours.
 *
 * It stays in our process group, so that an ssh can ask for a password at the terminal. A ctrl-C there is for us: what we start
 * ignores it, and is ended by us when the verdict is told.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import type net from 'node:net'
import { setTimeout } from 'node:timers/promises'
import { catchesTerm, childrenOf } from '../kernel/process.ts'
import { linkOverSocket } from './endpoint.ts'
import type { Link } from './link.ts'
import { readableLink } from './node-link.ts'

export interface ShellLinks {
  /** Starts it anew. Throws the signal's reason. */
  connect(signal: AbortSignal): Promise<Link>
  /** Waits for the end of all that were started, and ends those that stay. */
  end(): Promise<void>
}

/** How long a command may take to end once its link is destroyed: it may still have to say why. */
const LEAVE_MS = 3000
/** After SIGTERM. */
const GRACE_MS = 500

export function openShellLinks(command: string): ShellLinks {
  const running = new Map<ChildProcess, Link>()

  async function leave(child: ChildProcess, patienceMs: number): Promise<void> {
    const exited = once(child, 'exit')
    running.get(child)?.destroy()
    if ((await Promise.race([exited, setTimeout(patienceMs, 'stays', { ref: false })])) !== 'stays') return
    terminate(child.pid ?? 0)
    await Promise.race([exited, setTimeout(GRACE_MS)])
  }

  return {
    async connect(signal) {
      signal.throwIfAborted()
      const child = spawn('sh', ['-c', `trap '' HUP INT QUIT\n${command}`], { stdio: ['pipe', 'pipe', 'inherit'] })
      child.on('error', () => {})
      child.once('exit', () => running.delete(child))
      const [into, out] = [linkOverSocket(child.stdin as net.Socket, '--via'), readableLink(child.stdout, '--via')]
      const link: Link = {
        inlet: out.inlet,
        outlet: into.outlet,
        duplex: true,
        peer: '--via',
        destroy(reason) {
          into.destroy(reason)
          out.destroy(reason)
        },
      }
      if (child.pid !== undefined) running.set(child, link)
      return link
    },
    async end() {
      await Promise.all([...running.keys()].map((child) => leave(child, LEAVE_MS)))
    },
  }
}

/** Asks it and what it started to end. Who catches the signal ends its own in order: below a target may be the only copy. */
function terminate(pid: number): void {
  const below = catchesTerm(pid) ? [] : childrenOf(pid)
  try {
    process.kill(pid, 'SIGTERM')
  } catch {}
  for (const child of below) terminate(child)
}

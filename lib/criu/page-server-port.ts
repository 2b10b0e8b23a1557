/** The TCP port for criu --page-server --address 127.0.0.1 --port N. Finds out which criu has connected. */
import net from 'node:net'
import { Fault } from '../fault.ts'
import { asFault } from '../format/refusal.ts'
import type { Fd } from '../kernel/fd.ts'
import { loopbackPeers } from '../kernel/loopback.ts'
import type { Loopback } from '../kernel/tcp-owner.ts'
import { takeFd } from '../stream/endpoint.ts'
import { listen } from '../stream/listen.ts'
import { type CriuCommand, readCriuCommand } from './command-line.ts'

export type PagePort = Awaited<ReturnType<typeof openPagePort>>

/**
 * Listens; with `port` 0 the kernel chooses. `take` owns the socket that it gets. Throws `LINK` if it cannot listen.
 */
export async function openPagePort(
  port: number,
  take: (socket: Fd, command: CriuCommand) => void,
  refuse: (fault: Fault) => void,
) {
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true, noDelay: true })
  server.on('connection', (socket) => {
    try {
      const command = commandAt(socket)
      take(takeFd(socket), command)
    } catch (error) {
      socket.destroy()
      refuse(asFault(error))
    }
  })
  return { port: await listen(server, { host: '127.0.0.1', port }), close: () => void server.close() }
}

/**
 * The criu that has connected. Throws `REFUSED` where it is none, for any user may connect; `IO` where that cannot be
 * seen.
 */
function commandAt({ remoteAddress = '', remotePort = 0, localAddress = '', localPort = 0 }: net.Socket): CriuCommand {
  const ends = {
    theirs: { address: remoteAddress, port: remotePort },
    ours: { address: localAddress, port: localPort },
  }
  const command = peersOf(ends)
    .map(readCriuCommand)
    .find((found) => found !== undefined)
  if (command !== undefined) return command
  throw new Fault('REFUSED', 'the client of the page server port is not a criu that dumps', {
    hint: 'start it from the command line, as root, in the namespaces of this proxy',
  })
}

function peersOf(ends: Loopback): number[] {
  try {
    return loopbackPeers(ends, [0, process.geteuid?.()])
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    throw new Fault('IO', `cannot see who connected to the page server port (${code})`, { cause })
  }
}

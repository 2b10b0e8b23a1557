/** Connections of another user of this host: a relay that runs as that user, as `ssh -L` does when he has logged in. */
import { type Running, start } from './run.ts'

export interface UserRelay {
  /** Whoever connects there is connected on, by that user. */
  port: string
  stop(): Promise<void>
}

const PROGRAM = `
const net = require('node:net')
const [host, port] = process.argv.slice(1)
const server = net.createServer({ allowHalfOpen: true }, (near) => {
  const far = net.connect({ host, port: Number(port), allowHalfOpen: true })
  for (const [one, other] of [[near, far], [far, near]]) {
    one.on('error', () => {}).on('close', () => other.destroy())
    one.pipe(other)
  }
})
server.listen(0, host, () => console.error('relays on ' + server.address().port + '.'))
`

/** Relays from a port of `host` to `port` of it, as the user `uid`. Needs root. */
export async function userRelay(uid: number, port: string, host = '127.0.0.1'): Promise<UserRelay> {
  const as = [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--pdeathsig', 'TERM']
  const relay: Running = start('setpriv', [...as, process.execPath, '-e', PROGRAM, host, port])
  const [, own = ''] = await relay.says(/relays on (\d+)\./)
  return {
    port: own,
    async stop() {
      await relay.stop()
    },
  }
}

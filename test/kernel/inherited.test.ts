import { openSync } from 'node:fs'
import net from 'node:net'
import { networkInterfaces } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { asFd, duplicate, type Fd } from '../../lib/kernel/fd.ts'
import { inheritedSocket } from '../../lib/kernel/inherited.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { listenUnix } from '../../lib/kernel/unix.ts'
import { throwsFault } from '../expect.ts'
import { temporary } from '../support/run.ts'
import { socketPair } from '../support/sockets.ts'

const test = suite('kernel/inherited')

/** A descriptor of one of Node's sockets, ours to close. */
function fdOf(socket: net.Socket | net.Server): Fd {
  return duplicate((socket as unknown as { _handle: { fd: number } })._handle.fd)
}

const v6 = Object.values(networkInterfaces()).some((all) => all?.some(({ address }) => address === '::1'))

for (const host of ['127.0.0.1', ...(v6 ? ['::1', '::ffff:127.0.0.1'] : [])]) {
  test(`a TCP listener on ${host} and a connection to it, with their addresses`, async () => {
    const server = net.createServer().listen(0, host)
    await new Promise((resolve) => server.once('listening', resolve))
    const { port } = server.address() as net.AddressInfo
    const client = net.connect(port, host)
    await new Promise((resolve) => client.once('connect', resolve))
    const address = { host: host.replace('::ffff:', ''), port }
    const [listening, connected] = [fdOf(server), fdOf(client)]
    assert.equal(inheritedSocket(listening, 'listening'), { fd: listening, address })
    assert.equal(inheritedSocket(connected, 'connected'), { fd: connected, address })
    assert.match(throwsFault('USAGE', () => inheritedSocket(listening, 'connected')).message, /is not a connected/)
    assert.match(throwsFault('USAGE', () => inheritedSocket(connected, 'listening')).message, /is not a listening/)
    for (const fd of [listening, connected]) closeFd(fd)
    client.destroy()
    server.close()
  })
}

test('UNIX sockets have no address', async () => {
  const { path, remove } = temporary()
  const [one, two] = await socketPair(path)
  const listener = listenUnix(join(path, 'listener'))
  assert.equal(inheritedSocket(one, 'connected'), { fd: one, address: undefined })
  assert.equal(inheritedSocket(listener, 'listening'), { fd: listener, address: undefined })
  for (const fd of [one, two, listener]) closeFd(fd)
  remove()
})

test('a closed descriptor, a file, a socket that leads nowhere', async () => {
  const file = asFd(openSync('/dev/null', 'r'))
  const fault = throwsFault('USAGE', () => inheritedSocket(file, 'connected'))
  assert.is(fault.message, `fd ${file} is not a socket (ENOTSOCK)`)
  assert.is(fault.hint, `pass a connected stream socket on as fd ${file}`)
  closeFd(file)
  assert.match(throwsFault('USAGE', () => inheritedSocket(file, 'connected')).message, /EBADF/)
  const { socket, AF_INET, SOCK_STREAM, SOCK_DGRAM } = await import('../../lib/kernel/libc.ts')
  for (const type of [SOCK_STREAM, SOCK_DGRAM]) {
    const idle = asFd(socket(AF_INET, type, 0))
    for (const state of ['connected', 'listening'] as const) throwsFault('USAGE', () => inheritedSocket(idle, state))
    closeFd(idle)
  }
})

test.run()

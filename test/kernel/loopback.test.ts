import { once } from 'node:events'
import net from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { loopbackPeers } from '../../lib/kernel/loopback.ts'

const test = suite('kernel/loopback')

test('the process at the other end of a connection, by address and port, while there is one', async () => {
  const server = net.createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  const client = net.connect({ port, host: '127.0.0.1', localAddress: '127.0.0.9' })
  const [socket] = (await once(server, 'connection')) as [net.Socket]
  const ours = { address: '127.0.0.1', port }
  const theirs = { address: '127.0.0.9', port: socket.remotePort ?? 0 }
  const us = [process.getuid?.()]
  assert.equal(loopbackPeers({ theirs, ours }, us), [process.pid])
  assert.equal(loopbackPeers({ theirs: { ...theirs, address: '127.0.0.1' }, ours }, us), [], 'the same port elsewhere')
  assert.equal(loopbackPeers({ theirs, ours: { ...ours, address: '127.0.0.2' } }, us), [])
  assert.equal(loopbackPeers({ theirs, ours }, [65_534]), [], 'of another user')
  client.destroy()
  socket.destroy()
  server.close()
  await once(server, 'close')
  assert.equal(loopbackPeers({ theirs, ours }, us), [])
})

test.run()

import { once } from 'node:events'
import net from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { loopbackPeer } from '../../lib/kernel/loopback.ts'

const test = suite('loopback')

test('the process at the other end of a connection, while there is one', async () => {
  const server = net.createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const ours = (server.address() as net.AddressInfo).port
  const client = net.connect(ours, '127.0.0.1')
  const [socket] = (await once(server, 'connection')) as [net.Socket]
  const theirs = socket.remotePort ?? 0
  assert.equal(loopbackPeer({ theirs, ours }), { uid: process.getuid?.(), pids: [process.pid] })
  assert.is(loopbackPeer({ theirs: ours, ours: theirs + 1 }), undefined)
  client.destroy()
  socket.destroy()
  server.close()
  await once(server, 'close')
  assert.is(loopbackPeer({ theirs, ours }), undefined)
})

test.run()

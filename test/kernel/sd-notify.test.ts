import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { notify } from '../../lib/kernel/sd-notify.ts'
import { throwsFault, within } from '../expect.ts'
import { notifySocket } from '../support/notify.ts'
import { temporary } from '../support/run.ts'

const test = suite('kernel/sd-notify')

test.after.each(() => {
  delete process.env.NOTIFY_SOCKET
})

test('a state is one datagram, to a path or to an abstract name', async () => {
  const { path, remove } = temporary()
  for (const name of [join(path, 'notify'), `@ferry-test-${process.pid}`]) {
    const receiver = notifySocket(name)
    process.env.NOTIFY_SOCKET = name
    notify('READY=1')
    notify('STOPPING=1')
    assert.is(await within(receiver.next()), 'READY=1', name)
    assert.is(await within(receiver.next()), 'STOPPING=1', name)
    receiver.close()
  }
  remove()
})

test('without NOTIFY_SOCKET nothing happens', () => {
  notify('READY=1')
  process.env.NOTIFY_SOCKET = ''
  notify('READY=1')
})

test('nobody there, or no name of a socket: a fault', () => {
  process.env.NOTIFY_SOCKET = '/nowhere/notify'
  assert.match(throwsFault('IO', () => notify('READY=1')).message, /cannot connect to \/nowhere\/notify: ENOENT/)
  for (const name of ['relative', 'vsock:2:1', `/${'x'.repeat(107)}`]) {
    process.env.NOTIFY_SOCKET = name
    assert.match(throwsFault('IO', () => notify('READY=1'), name).message, /is no socket/)
  }
  process.env.NOTIFY_SOCKET = `@${'x'.repeat(106)}`
  assert.match(throwsFault('IO', () => notify('READY=1')).message, /ECONNREFUSED/)
})

test.run()

import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { credentialHelp, credentialOptions, readCredentials } from '../../lib/cli/credential-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/credential-options')

const none = { tls: false, 'tls-no-cn-verify': false, insecure: false }
const files = { 'tls-cacert': 'ca', 'tls-cert': 'cert', 'tls-key': 'key' }

const credentialsOf = (values: Parameters<typeof readCredentials>[0]) => readCredentials(values).credentials

test('plain, certificates, a key', () => {
  assert.is(credentialsOf(none), undefined)
  assert.is(credentialsOf({ ...none, insecure: true }), undefined)
  assert.equal(credentialsOf({ ...none, 'key-file': 'k' }), { kind: 'key', key: 'k' })
  const tls = { kind: 'tls', ca: 'ca', cert: 'cert', key: 'key', crl: undefined, anyName: false }
  assert.equal(credentialsOf({ ...none, tls: true, ...files }), tls)
  const all = { ...none, tls: true, ...files, 'tls-cacrl': 'crl', 'tls-no-cn-verify': true }
  assert.equal(credentialsOf(all), { ...tls, crl: 'crl', anyName: true })
})

test('what does not go together, or does nothing, is USAGE', () => {
  const wrong: [values: Parameters<typeof credentialsOf>[0], message: string][] = [
    [{ ...none, tls: true, ...files, 'key-file': 'k' }, '--tls and --key-file do not go together'],
    [{ ...none, tls: true, ...files, insecure: true }, '--tls and --insecure do not go together'],
    [{ ...none, 'key-file': 'k', insecure: true }, '--key-file and --insecure do not go together'],
    [{ ...none, tls: true, 'tls-cert': 'c', 'tls-key': 'k' }, '--tls-cacert is missing'],
    [{ ...none, tls: true, 'tls-cacert': 'c', 'tls-key': 'k' }, '--tls-cert is missing'],
    [{ ...none, tls: true, 'tls-cacert': 'c', 'tls-cert': 'c' }, '--tls-key is missing'],
    [{ ...none, 'tls-cacert': 'c' }, '--tls-cacert needs --tls'],
    [{ ...none, 'key-file': 'k', 'tls-cacrl': 'c' }, '--tls-cacrl needs --tls'],
    [{ ...none, 'tls-no-cn-verify': true }, '--tls-no-cn-verify needs --tls'],
  ]
  for (const [values, message] of wrong)
    assert.is(throwsFault('USAGE', () => credentialsOf(values), message).message, message)
})

test('users of this host are told apart only over plain loopback', () => {
  const users = (values: Partial<Parameters<typeof readCredentials>[0]>) => readCredentials({ ...none, ...values })
  assert.equal(users({}), { credentials: undefined, allowUids: [], insecure: false })
  assert.equal(users({ 'allow-uid': ['0', '1000'] }).allowUids, [0, 1000])
  assert.equal(users({ insecure: true }), { credentials: undefined, allowUids: undefined, insecure: true })
  for (const uid of ['', '-1', 'nobody', '4294967295']) throwsFault('USAGE', () => users({ 'allow-uid': [uid] }), uid)
  for (const odd of [{ insecure: true }, { 'key-file': 'k' }, { tls: true, ...files }]) {
    throwsFault('USAGE', () => users({ 'allow-uid': ['0'], ...odd }), JSON.stringify(odd))
  }
})

test('the usage text names every option', () => {
  for (const option of Object.keys(credentialOptions)) assert.match(credentialHelp, new RegExp(`--${option}\\b`))
})

test.run()

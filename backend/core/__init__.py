"""The ground floor: types, the roles' protocols, errors, names, settings. Imports no other room."""

-- Orthanc passes on every MR image that it gets; what comes back are segmentations and reports.
function OnStoredInstance(instance, tags)
  if tags['Modality'] == 'MR' then
    SendToModality(instance, 'accunet')
  end
end
